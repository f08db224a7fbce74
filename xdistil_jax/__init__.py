"""Distil massive multilingual encoders into tiny students for tagging and classification."""

from xdistil_jax import lazy

_PUBLIC = {
    "Corpus": "data.corpus",
    "DataSpec": "data.corpus",
    "EnsembleConfig": "configs",
    "Experiment": "experiment",
    "OutputsWriter": "teacher.outputs",
    "Recipe": "distill.strategies",
    "Result": "experiment",
    "RunConfig": "configs",
    "Schedule": "distill.stages",
    "Sentence": "data.corpus",
    "Session": "session",
    "Stage": "distill.stages",
    "StopRule": "distill.stages",
    "StudentConfig": "configs",
    "Tagger": "deploy.tagger",
    "TagSet": "labels",
    "TeacherConfig": "configs",
    "Term": "distill.stages",
    "Tuning": "distill.strategies",
    "cache_teacher": "targets",
    "describe": "distill.stages",
    "distil": "student",
    "encode_text": "targets",
    "evaluate": "evaluation",
    "load_corpus": "data.corpus",
    "load_test": "data.corpus",
    "plan": "distill.strategies",
    "prepare_teacher": "finetune",
    "run": "pipeline",
    "unfreeze": "distill.stages",
}

__all__ = sorted(_PUBLIC)
__getattr__ = lazy.names(__name__, _PUBLIC)


def __dir__() -> list[str]:
    return __all__
