"""What a conversion leaves out for good, in words: said when it is done, so that nothing is lost in silence."""

from limbeck.settings import Settings
from limbeck.signals.convert.kinds import all_entries_exact
from limbeck.signals.dataset import SignalDataset
from limbeck.signals.from_logits import kind_stored, selection_of

REST = "the mass of the tail, but for what the entries leave of 1"


def left_out(source: Settings, target: Settings, vocabulary: int) -> list[str]:
    """Return what a codec `target` does not keep of the signals that codec `source` stores."""
    have, want = kind_stored(source, vocabulary), kind_stored(target, vocabulary)
    match have, want:
        case "topk", "topk":
            return [*_fewer_entries(source, target), *_other_temperatures(source, target), *_rest(source, target)]
        case _ if have == want:
            stored, kept = getattr(source, "dtype", None), getattr(target, "dtype", None)
            return [] if stored == kept else [f"what {kept} can't hold of {stored}"]
        case _, "topk":
            return ["the probability of each token that is no entry (their sum is kept)"]
        case _, "sampled":
            return ["all but the likely tokens and those that were drawn"]
        case _, "token":
            return ["all but the probability of the token that came next"]
        case _:
            return ["the hidden states (their distributions are kept)"]


def left_out_as_entries(dataset: SignalDataset, entries: int) -> list[str]:
    """Return what a list of entries a position does not hold of a dataset's signals.

    Args:
        dataset: what is written.
        entries: the most of a position.
    """
    source, vocabulary = dataset.codec.spec, dataset.manifest.vocabulary
    if kind_stored(source, vocabulary) != "topk":
        return [f"the probability of each token beyond the {entries} most probable"]
    have = selection_of(source)
    fewer = [f"entries beyond the {entries} most probable"] if entries < have.cap else []
    others = [f"{one:g}" for one in have.temperatures if one != 1.0]
    normalisers = [f"the normalisers at temperature {', '.join(others)}"] if others else []
    return [*fewer, *normalisers, *([] if hasattr(source, "exact_k") else [REST])]


def _fewer_entries(source: Settings, target: Settings) -> list[str]:
    have, want = selection_of(source), selection_of(target)
    if want.cap < have.cap or (want.select, want.threshold, want.mass) != (have.select, have.threshold, have.mass):
        by = {"threshold": f"below {want.threshold:g}", "mass": f"beyond a mass of {want.mass:g}", "count": ""}
        limits = [by[want.select]] if by[want.select] and not all_entries_exact(target) else []
        return [f"entries {' or '.join([*limits, f'beyond the {want.cap} most probable'])}"]
    return []


def _other_temperatures(source: Settings, target: Settings) -> list[str]:
    have, want = selection_of(source).temperatures, selection_of(target).temperatures
    gone = [f"{one:g}" for one in have if one not in want]
    return [f"the normalisers at temperature {', '.join(gone)}"] if gone else []


def _rest(source: Settings, target: Settings) -> list[str]:
    """DistillKit's codecs store no tail."""
    return [REST] if hasattr(target, "exact_k") and not hasattr(source, "exact_k") else []
