"""The five kinds of ``instructpt.dev/v1alpha1``."""

from instructpt.api.v1alpha1.corpus import Corpus
from instructpt.api.v1alpha1.evaluationjob import EvaluationJob
from instructpt.api.v1alpha1.instructionpretraining import InstructionPretraining
from instructpt.api.v1alpha1.synthesisjob import SynthesisJob
from instructpt.api.v1alpha1.trainingjob import TrainingJob

KINDS: dict[str, type[Corpus | SynthesisJob | TrainingJob | EvaluationJob | InstructionPretraining]] = {
    kind.__name__: kind for kind in (Corpus, SynthesisJob, TrainingJob, EvaluationJob, InstructionPretraining)
}

__all__ = ["KINDS", "Corpus", "EvaluationJob", "InstructionPretraining", "SynthesisJob", "TrainingJob"]
