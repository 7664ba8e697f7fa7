"""Admission: what is checked of a model before anything of it is loaded. Built-in checks are registered on import."""

from limbeck.arena.admission import contents as _contents  # noqa: F401 - registers checks
from limbeck.arena.admission import files as _files  # noqa: F401
from limbeck.arena.admission import tokenizer as _tokenizer  # noqa: F401
from limbeck.arena.admission import weights as _weights  # noqa: F401
from limbeck.arena.admission.registry import CheckResult, RefusalError, Report, Rules, Status, all_checks, run_checks
from limbeck.arena.admission.submission import Submission

__all__ = ["CheckResult", "RefusalError", "Report", "Rules", "Status", "Submission", "all_checks", "run_checks"]
