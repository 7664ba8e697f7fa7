"""The plain formulas in float64, by way of autograd: what losses and executor are held to.

Nothing here is taken from the code under test but the types of signals. Everything is written over whole vectors of
logits, with no chunk, no closed form and no care for speed.
"""

import math

import torch
from torch import Tensor

from limbeck.signals.types import (
    DenseSignal,
    HiddenSignal,
    OutputHead,
    SampledSignal,
    TeacherSignal,
    TokenSignal,
    TopkSignal,
)

TEMPERATURES = (1.0, 2.0, 4.0)


def logits_of(hidden: Tensor, head: OutputHead) -> Tensor:
    logits = hidden.double() @ head.weight.double().T
    logits = logits if head.bias is None else logits + head.bias.double()
    return logits if head.soft_cap is None else head.soft_cap * torch.tanh(logits / head.soft_cap)


def topk_signal(logits: Tensor, k: int, dtype: torch.dtype = torch.float32) -> TopkSignal:
    """The exact top-k signal of logits."""
    dense = torch.log_softmax(logits.double(), -1)
    values, ids = dense.topk(k)
    tail = dense.scatter(-1, ids, -math.inf).logsumexp(-1)
    normalisers = torch.stack([(dense / t).logsumexp(-1) for t in TEMPERATURES], -1)
    everywhere = torch.ones(len(dense), dtype=torch.bool)
    return TopkSignal(ids, values.to(dtype), tail.to(dtype), normalisers.to(dtype), TEMPERATURES, everywhere)


def sampled_signal(logits: Tensor, draws: int, seed: int) -> SampledSignal:
    """`draws` tokens drawn from the teacher with replacement; each stands once, weighted by how often it was drawn."""
    log_p = torch.log_softmax(logits.double(), -1)
    n, v = log_p.shape
    drawn = torch.multinomial(log_p.exp(), draws, replacement=True, generator=torch.Generator().manual_seed(seed))
    counts = torch.zeros(n, v).scatter_add_(-1, drawn, torch.ones(n, draws))
    weights, ids = (counts / draws).topk(min(draws, v))
    logprobs = log_p.gather(-1, ids).float().masked_fill(weights == 0, -math.inf)
    return SampledSignal(ids, weights, logprobs, torch.ones(n, dtype=torch.bool))


def formula(name: str, log_p: Tensor, log_q: Tensor, **parameters: float) -> Tensor:
    """What each of M outcomes contributes to a divergence of two distributions, in float64."""
    p, q = log_p.exp(), log_q.exp()
    match name:
        case "kl":
            return p * (log_p - log_q)
        case "reverse_kl":
            return q * (log_q - log_p)
        case "jsd":
            beta = parameters.get("beta", 0.5)
            m = beta * p + (1 - beta) * q
            return beta * p * (p / m).log() + (1 - beta) * q * (q / m).log()
        case "skew_kl":
            alpha = parameters.get("alpha", 0.1)
            return p * (p / (alpha * p + (1 - alpha) * q)).log()
        case "skew_reverse_kl":
            alpha = parameters.get("alpha", 0.1)
            return q * (q / (alpha * q + (1 - alpha) * p)).log()
        case "tvd":
            return (p - q).abs() / 2
        case "uld":
            return (p.sort(-1).values - q.sort(-1).values).abs()
        case "entropy_aware_kl":
            entropy = -(p * log_p).sum(-1, keepdim=True)
            gate = torch.sigmoid((entropy - parameters.get("threshold", 1.5)) / parameters.get("width", 0.5))
            return gate * p * (log_p - log_q) + (1 - gate) * q * (log_q - log_p)
    raise KeyError(name)


DIVERGENCES = ("kl", "reverse_kl", "jsd", "skew_kl", "skew_reverse_kl", "tvd", "entropy_aware_kl")
SLOPES = {"jsd": 0.5 * math.log(2), "skew_reverse_kl": math.log(10), "tvd": 0.5}  # at the default parameters
UNSCALED = ("tvd", "uld", "cross_entropy", "hinge", "adaptive_hinge", "logistic_ranking", "k1", "k2", "k3")


def plain_values(
    name: str, logits: Tensor, targets: Tensor, signal: TeacherSignal | None, temperature: float, missing: str | None
) -> Tensor:
    """A loss's values `[N]` as a float64 graph over the student's logits, multiplied by T squared where it is due."""
    log_q = torch.log_softmax(logits / temperature, -1)
    factor = 1.0 if name in UNSCALED else temperature**2
    return factor * _values(name, log_q, targets, signal, temperature, missing)


def _values(
    name: str, log_q: Tensor, targets: Tensor, signal: TeacherSignal | None, temperature: float, missing: str | None
) -> Tensor:
    at_target = log_q.gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    if name == "cross_entropy":
        return -at_target
    if name in ("k1", "k2", "k3"):
        return _estimator(name, at_target, targets, signal, temperature)
    match signal:
        case DenseSignal() | HiddenSignal():
            return formula(name, _dense(signal, temperature), log_q).sum(-1)
        case SampledSignal():
            there = signal.weights > 0
            log_p, log_q = signal.logprobs.double().masked_fill(~there, -50.0), log_q.gather(-1, signal.ids)
            ratio = signal.weights.double() / log_p.exp()
            if name in ("hinge", "adaptive_hinge", "logistic_ranking"):
                return _ranking(name, log_p, log_q)
            left = formula(name, log_p, log_q) - SLOPES.get(name, 0.0) * (log_q.exp() - log_p.exp())
            return (ratio * left).sum(-1)
        case TopkSignal():
            log_p, log_q = _merged(signal, log_q, temperature, missing or "tail")
            if name in ("hinge", "adaptive_hinge", "logistic_ranking"):
                k = signal.ids.shape[-1]
                return _ranking(name, log_p[:, :k], log_q[:, :k])
            return formula(name, log_p, log_q).sum(-1)
    raise KeyError(signal)


def _dense(signal: DenseSignal | HiddenSignal, temperature: float) -> Tensor:
    scores = signal.logprobs if isinstance(signal, DenseSignal) else logits_of(signal.hidden, signal.head)
    return torch.log_softmax(scores.double() / temperature, -1)


def _merged(signal: TopkSignal, log_q: Tensor, temperature: float, missing: str) -> tuple[Tensor, Tensor]:
    """Both distributions over the listed tokens, and one outcome for the rest unless `missing` is `zero`."""
    log_p, ids = signal.logprobs.double(), signal.ids
    rest = torch.ones_like(log_q, dtype=torch.bool).scatter(-1, ids, False)
    log_q_rest = log_q.masked_fill(~rest, -math.inf).logsumexp(-1, keepdim=True)
    log_q_listed = log_q.gather(-1, ids)
    if missing == "zero":
        return torch.log_softmax(log_p / temperature, -1), log_q_listed
    if missing == "tail":
        index = signal.temperatures.index(temperature)
        log_p = log_p / temperature - signal.log_normalisers[:, index, None].double()
        tail = 1 - log_p.exp().sum(-1, keepdim=True)
        log_rest = signal.log_tail_mass.double()[:, None] if temperature == 1.0 else tail.log()
    else:
        unlisted = log_q.shape[-1] - ids.shape[-1]
        each = ((1 - log_p.exp().sum(-1, keepdim=True)) / unlisted).log()
        both = torch.cat([log_p / temperature, math.log(unlisted) + each / temperature], -1).log_softmax(-1)
        log_p, log_rest = both[:, :-1], both[:, -1:]
    return torch.cat([log_p, log_rest], -1), torch.cat([log_q_listed, log_q_rest], -1)


def _ranking(name: str, log_p: Tensor, log_q: Tensor) -> Tensor:
    p, q = log_p.exp(), log_q.exp()
    values = []
    for row in range(len(p)):
        found = []
        for k in range(p.shape[-1]):
            for other in range(p.shape[-1]):
                if p[row, k] > p[row, other] + 1e-8 and p[row, other] > 1e-8:
                    ahead = q[row, k] - q[row, other]
                    match name:
                        case "hinge":
                            found.append((0.1 - ahead).clamp(min=0))
                        case "adaptive_hinge":
                            found.append((p[row, k] - p[row, other] - ahead).clamp(min=0))
                        case _:
                            found.append((1 + (log_q[row, other] - log_q[row, k]).exp()).log())
        values.append(torch.stack(found).mean() if found else log_q[row].sum() * 0)
    return torch.stack(values)


def _estimator(name: str, log_q: Tensor, targets: Tensor, signal: TeacherSignal | None, temperature: float) -> Tensor:
    if isinstance(signal, TokenSignal):
        log_p = signal.logprobs.double()
    else:
        assert isinstance(signal, DenseSignal | HiddenSignal)
        log_p = _dense(signal, temperature).gather(-1, targets.unsqueeze(-1)).squeeze(-1)
    difference = log_q - log_p
    match name:
        case "k1":  # its value, with the gradient of the score-function estimate
            return difference.detach() + difference.square() / 2 - difference.square().detach() / 2
        case "k2":
            return difference.square() / 2
        case _:
            return (-difference).exp() - 1 + difference
