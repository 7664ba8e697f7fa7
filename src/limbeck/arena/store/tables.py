"""The tables. Results belong to commitments (`hotkey:block`), never to UIDs or repository names."""

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Float,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    text,
)

SCHEMA_VERSION = 1

METADATA = MetaData()

meta = Table("meta", METADATA, Column("key", String(40), primary_key=True), Column("value", Text, nullable=False))

events = Table(
    "events",
    METADATA,
    Column("number", Integer, primary_key=True, autoincrement=False),
    Column("kind", String(40), nullable=False),
    Column("body", Text, nullable=False),
    Column("previous", String(64), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
)

configs = Table(
    "configs",
    METADATA,
    Column("version", Integer, primary_key=True, autoincrement=False),
    Column("digest", String(64), nullable=False),
    Column("name", String(64), nullable=False),
    Column("body", Text, nullable=False),
)

commitments = Table(
    "commitments",
    METADATA,
    Column("id", String(80), primary_key=True),
    Column("hotkey", String(64), nullable=False, unique=True),
    Column("coldkey", String(64), nullable=False),
    Column("block", Integer, nullable=False),
    Column("repo", String(128), nullable=False),
    Column("revision", String(40), nullable=False),
    Column("manifest", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("reason", Text, nullable=False, server_default=""),
    UniqueConstraint("hotkey", "block"),
    Index("commitments_by_state", "state", "block", "hotkey"),
)

admissions = Table(
    "admissions",
    METADATA,
    Column("commitment", ForeignKey("commitments.id"), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", String(40), nullable=False),
    Column("status", String(8), nullable=False),
    Column("why", Text, nullable=False),
    Column("mend", Text, nullable=False),
    Column("fault", String(16)),
)

contents = Table(
    "contents",
    METADATA,
    Column("kind", String(16), primary_key=True),
    Column("digest", String(64), primary_key=True),
    Column("commitment", ForeignKey("commitments.id"), primary_key=True),
)

rounds = Table(
    "rounds",
    METADATA,
    Column("id", Integer, primary_key=True, autoincrement=False),
    Column("block_hash", String(66), nullable=False),
    Column("config", ForeignKey("configs.version"), nullable=False),
    Column("king", ForeignKey("commitments.id")),
    Column("evaluator", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Index("one_open_round", text("(1)"), unique=True, sqlite_where=text("state != 'closed'")),
)

participants = Table(
    "participants",
    METADATA,
    Column("round", ForeignKey("rounds.id"), primary_key=True),
    Column("commitment", ForeignKey("commitments.id"), primary_key=True),
    Column("role", String(16), nullable=False),
    Column("evaluated", Boolean, nullable=False),
    Column("failure", Text),
    Column("fault", String(16)),
)

prompts = Table(
    "prompts",
    METADATA,
    Column("round", ForeignKey("rounds.id"), primary_key=True),
    Column("prompt", Integer, primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("tokens", Integer, nullable=False),
)

evidence = Table(
    "evidence",
    METADATA,
    Column("round", Integer, primary_key=True),
    Column("commitment", String(80), primary_key=True),
    Column("prompt", Integer, primary_key=True),
    Column("tokens", Integer, nullable=False),
    Column("kl", Float),
    Column("reverse_kl", Float),
    Column("top1", Float),
    Column("error", Text),
    Column("fault", String(16)),
    ForeignKeyConstraint(["round", "commitment"], ["participants.round", "participants.commitment"]),
    ForeignKeyConstraint(["round", "prompt"], ["prompts.round", "prompts.prompt"]),
    CheckConstraint("(kl IS NULL) = (error IS NOT NULL)", name="a_number_or_a_reason"),
)

verdicts = Table(
    "verdicts",
    METADATA,
    Column("round", ForeignKey("rounds.id"), primary_key=True),
    Column("digest", String(64), nullable=False),
    Column("body", Text, nullable=False),
)

reigns = Table(
    "reigns",
    METADATA,
    Column("from_round", ForeignKey("rounds.id"), primary_key=True),
    Column("commitment", ForeignKey("commitments.id"), nullable=False),
    Column("to_round", ForeignKey("rounds.id")),
    Column("reason", Text, nullable=False, server_default=""),
    Index("one_king", text("(1)"), unique=True, sqlite_where=text("to_round IS NULL")),
)

weights = Table(
    "weights",
    METADATA,
    Column("round", ForeignKey("rounds.id"), primary_key=True),
    Column("body", Text, nullable=False),
    Column("block", Integer, nullable=False),
    Column("block_hash", String(66), nullable=False),
    Column("tx_hash", String(66), nullable=False),
)
