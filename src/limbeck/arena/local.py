"""An arena in one folder: ledger, store, models and keys, for a laptop without a network.

    In the folder: `ledger.sqlite`, the chain; `store.sqlite`, what is known; `models`, repositories by revision;
    `wallets`, keys (0600); `tokenizer`, the teacher's; and `work`, what evaluators keep for themselves.

Everything here can be called again: what is there already is not made a second time.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path

from limbeck.arena.admission import Report, Rules, Submission, run_checks
from limbeck.arena.admission.tokenizer import SAME_FILES
from limbeck.arena.chain.interface import Neuron
from limbeck.arena.chain.ledger import Ledger
from limbeck.arena.config import ArenaConfig
from limbeck.arena.decision import Verdict
from limbeck.arena.evaluation import Evaluator, find_teacher
from limbeck.arena.faults import ForeignError
from limbeck.arena.identity import BlockNumber, CommitmentId, CommitPayload, Hotkey, ModelRef
from limbeck.arena.models import FolderStore, LocalRepository, Repository, manifest_digest
from limbeck.arena.replay import Replay, verify_round
from limbeck.arena.round import Validator, run_round, settle
from limbeck.arena.store import Reign, RoundState, Store
from limbeck.arena.wallet import Key, Wallets
from limbeck.errors import LimbeckError, UserError

VALIDATOR_WALLET = "validator"
MINER_WALLET = "miner"
HOTKEY = "default"


@dataclass(frozen=True)
class LocalArena:
    """An open arena; make it with `LocalArena.open`."""

    folder: Path
    ledger: Ledger
    store: Store
    models: FolderStore
    wallets: Wallets
    config: ArenaConfig
    teacher: Path | None

    @classmethod
    def open(
        cls, folder: Path, config: ArenaConfig | None = None, *, teacher: Path | None = None, seed: int | None = None
    ) -> "LocalArena":
        """Open the arena in `folder`; with a configuration, make it where it is not there.

        Args:
            folder: the arena's folder.
            config: its configuration; one that differs from the newest in the store becomes its newest version.
            teacher: the teacher's folder; needed to make an arena whose `teacher.repo` is no local folder and is not
                registered, and to measure.
            seed: derive new keys from it instead of fresh entropy.

        Raises:
            UserError: there is no arena and no configuration, the teacher is not found, or a file is not what it
                should be.
            IntegrityError: the ledger was tampered with.
        """
        known = (folder / "ledger.sqlite").exists() and (folder / "store.sqlite").exists()
        if not known and config is None:
            raise UserError(f"{folder}: there is no arena. Make one with a configuration: --arena pocket.")
        wallets = Wallets(folder / "wallets", seed)
        validator = wallets.hotkey(VALIDATOR_WALLET, HOTKEY, create=config is not None)
        ledger = Ledger(folder / "ledger.sqlite", validators=[validator.address])
        _register(ledger, wallets.coldkey(VALIDATOR_WALLET, create=config is not None), validator.address)
        store = Store(folder / "store.sqlite", ledger.genesis_hash)
        saved = store.config()
        if config is not None:
            config = _with_tokenizer(config, saved[1] if saved else None, folder / "tokenizer", teacher)
            store.save_config(config)
        elif saved is not None:
            config = saved[1]
        else:
            raise UserError(f"{folder}: the arena has no configuration. Give one: --arena pocket.")
        models = FolderStore(folder / "models")
        models.root.mkdir(parents=True, exist_ok=True)
        return cls(folder, ledger, store, models, wallets, config, teacher)

    def close(self) -> None:
        """Close ledger and store."""
        self.ledger.close()
        self.store.close()

    # Miners

    def register(self, hotkey: str = HOTKEY, wallet: str = MINER_WALLET) -> Neuron:
        """Make the keys where there are none, and register the hotkey; again is the same neuron."""
        key = self.wallets.hotkey(wallet, hotkey, create=True)
        return _register(self.ledger, self.wallets.coldkey(wallet, create=True), key.address)

    def publish(self, repo: str, folder: Path) -> ModelRef:
        """Copy a model into the arena's store as the newest revision of `repo`."""
        return self.models.publish(repo, folder)

    def payload(self, model: ModelRef) -> CommitPayload:
        """Return what a miner would commit to for a model in the store."""
        return CommitPayload(model, manifest_digest(self.models.open(model)))

    def check(self, model: ModelRef | Path) -> Report:
        """Run every check on a model in the store, or in a folder, as if it were committed now.

        Raises:
            UserError: the folder is not there.
            ForeignError: a check could not be made.
        """
        return check_model(_opener(self.models, model), self.config, self.folder / "tokenizer", self.store)

    def submit(self, model: ModelRef, hotkey: str = HOTKEY, wallet: str = MINER_WALLET) -> CommitmentId:
        """Commit a model on the ledger, read it back, and return the commitment. A hotkey commits once.

        Raises:
            UserError: the hotkey has committed another model.
            ChainError: the ledger refused; the hotkey has to be registered.
        """
        key, data = self.wallets.hotkey(wallet, hotkey), self.payload(model).encode()
        if (earlier := self.committed(key.address)) is not None:
            if earlier[1] != data:
                raise UserError(
                    f"{key.address}: has committed already, and a commitment is for ever. Use a new hotkey."
                )
            return earlier[0]
        self.ledger.publish(key, data).required(f"{model} was not committed")
        seen = self.committed(key.address)
        if seen is None or seen[1] != data:
            raise LimbeckError(f"{model}: the ledger does not show the commitment that it took.")
        return seen[0]

    def committed(self, hotkey: Hotkey) -> tuple[CommitmentId, bytes] | None:
        """Return what a hotkey has committed on the ledger."""
        found = (entry for entry in self.ledger.commitments() if entry.hotkey == hotkey)
        return next(((CommitmentId(hotkey, entry.block), entry.data) for entry in found), None)

    # Validator

    def run_round(self, evaluator: Evaluator) -> Verdict | None:
        """Finish the open round, or run a new one over all that is committed; None where nobody challenges."""
        if self.store.rounds.open_round() is None:
            settle(self.ledger, self.store)
        return run_round(self.validator(), evaluator)

    def validator(self) -> Validator:
        """Return what a validator's round works with."""
        return Validator(
            chain=self.ledger,
            store=self.store,
            models=self.models,
            key=self.validator_key(),
            tokenizer=self.folder / "tokenizer",
            teacher=find_teacher(self.config.teacher.repo, self.teacher),
            work=self.folder / "work",
        )

    def validator_key(self) -> Key:
        """Return the hotkey that sets weights."""
        return self.wallets.hotkey(VALIDATOR_WALLET, HOTKEY)

    # Readers

    def king(self) -> Reign | None:
        """Return the reign that lasts."""
        return self.store.rounds.king()

    def king_folder(self) -> Path | None:
        """Return the local folder of the king's model."""
        reign = self.king()
        row = self.store.commitments.get(reign.commitment) if reign else None
        return self.models.open(row.payload.model).folder() if row else None

    def last_round(self) -> BlockNumber | None:
        """Return the newest round that is closed."""
        closed = [row.id for row in self.store.rounds.all() if row.state is RoundState.CLOSED]
        return closed[-1] if closed else None

    def verify(self, number: BlockNumber) -> Replay:
        """Recompute a round's verdict; the ledger and the event log are walked first."""
        self.ledger.verify()
        return verify_round(self.store, number, self.ledger)


def check_folder(folder: Path, config: ArenaConfig, teacher: Path) -> Report:
    """Run every check on a folder, with no arena to compare it with.

    Raises:
        UserError: the folder is not there.
        ForeignError: a check could not be made.
    """
    return check_model(_opener(None, folder), config, teacher, None)


def check_model(repository: Repository, config: ArenaConfig, tokenizer: Path, store: Store | None) -> Report:
    """Run every check on an open repository that is not committed yet."""
    rules = Rules(
        student=config.student,
        tokenizer=config.teacher.tokenizer,
        teacher=tokenizer,
        first_owner=store.commitments.first_owner if store else None,
    )
    return run_checks(Submission(lambda: repository), rules)


def _opener(models: FolderStore | None, model: ModelRef | Path) -> Repository:
    if isinstance(model, ModelRef):
        if models is None:
            raise UserError(f"{model}: there is no model store to look in.")
        return models.open(model)
    if not model.is_dir():
        what = "not a folder" if model.exists() else "no such folder"
        raise UserError(f"{model}: {what}. Give the folder that holds config.json and model.safetensors.")
    return LocalRepository(model)


def _register(ledger: Ledger, cold: Key, hot: Hotkey) -> Neuron:
    def find() -> Neuron | None:
        return next((neuron for neuron in ledger.neurons() if neuron.hotkey == hot), None)

    if (known := find()) is not None:
        return known
    ledger.register(cold, hot).required(f"{hot} was not registered")
    neuron = find()
    if neuron is None:
        raise LimbeckError(f"{hot}: the ledger does not show the registration that it took.")
    return neuron


def _with_tokenizer(config: ArenaConfig, saved: ArenaConfig | None, target: Path, teacher: Path | None) -> ArenaConfig:
    """Copy the teacher's tokenizer files into the arena, and put their digest into the configuration."""
    if saved is not None and saved.teacher.repo == config.teacher.repo:
        wanted = config.teacher.tokenizer or saved.teacher.tokenizer
        if wanted == saved.teacher.tokenizer:
            return config.model_copy(update={"teacher": config.teacher.model_copy(update={"tokenizer": wanted})})
    from limbeck.data.tokenizer import load_tokenizer, tokenizer_digest

    source = find_teacher(config.teacher.repo, teacher)
    digest = tokenizer_digest(load_tokenizer(source))
    if config.teacher.tokenizer not in (None, digest):
        raise UserError(f"{source}: the tokenizer has the digest {digest}, and teacher.tokenizer says another.")
    try:
        target.mkdir(parents=True, exist_ok=True)
        for name in (*SAME_FILES, "tokenizer_config.json", "chat_template.jinja"):
            if (source / name).is_file():
                shutil.copyfile(source / name, target / name)
    except OSError as error:
        raise ForeignError(f"{target}: the teacher's tokenizer cannot be copied ({error.strerror}).") from error
    return config.model_copy(update={"teacher": config.teacher.model_copy(update={"tokenizer": digest})})
