from tests.trainers.conftest import make_trainer

__all__ = ["make_trainer"]
