"""Writes MLflow's model directories from Python models, with or without MLflow.

    from envd.record import record

    record("model", python_model=Model(), input_example=table, infer_code_paths=True)

What MLflow's page on dependencies warns of is done or refused here: see `record`.
"""

from envd.record.recording import record
from envd.record.writing import Recorded

__all__ = ["Recorded", "record"]
