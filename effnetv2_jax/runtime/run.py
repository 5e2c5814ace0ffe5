"""A run: everything that a config stands for, in plain values and in terms of the library."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping

import jax
import optax
from absl import logging

from effnetv2_jax.data import images, pipeline
from effnetv2_jax.data.sources import Source
from effnetv2_jax.models import Network
from effnetv2_jax.models.registry import family_of
from effnetv2_jax.preprocessing import Preprocessing
from effnetv2_jax.progressive import Stage, examples_before, stage_at
from effnetv2_jax.runtime.errors import UsageError
from effnetv2_jax.training.answers import Answers, collect
from effnetv2_jax.training.build import Training
from effnetv2_jax.training.evaluation import Evaluation, evaluate
from effnetv2_jax.training.mesh import Batch, abstract_batch
from effnetv2_jax.training.preparation import Preparation
from effnetv2_jax.training.state import TrainState
from effnetv2_jax.training.survival.agreement import Agreement
from effnetv2_jax.weights import read_weights
from effnetv2_jax.weights.load import put


@dataclasses.dataclass(frozen=True, kw_only=True)
class Scorer:
    """A network and the data sets that it is evaluated on.

    Attributes:
        name: The name of the model.
        training: The model, the training step and the evaluation step on the mesh.
        sources: Every data set by name, those of the evaluations included.
        preprocessing: The input family.
        max_bad_fraction: The largest fraction of undecodable examples in a split, see
            ``pipeline.train_batches``.
    """

    name: str
    training: Training
    sources: Mapping[str, Source]
    preprocessing: Preprocessing
    max_bad_fraction: float

    def evaluate(
        self,
        evaluation: Evaluation,
        state: TrainState,
        agreement: Agreement | None = None,
        moves: Callable[[], None] = lambda: None,
    ) -> dict[str, float] | None:
        """Makes an evaluation of a state, see ``evaluation.evaluate``."""
        return evaluate(
            self.training.eval_step,
            *evaluation.choose_weights(state),
            self.eval_batches(evaluation),
            self.training.mesh,
            agreement=agreement,
            moves=moves,
        )

    def answer(self, evaluation: Evaluation, state: TrainState) -> Answers:
        """Evaluates a state example by example, see ``answers.collect``."""
        size = self.sources[evaluation.data].split(evaluation.split).size
        return collect(
            self.training.answer_step,
            *evaluation.choose_weights(state),
            self.eval_batches(evaluation),
            self.training.mesh,
            first=_share().range_of(size)[0],
        )

    def eval_batches(self, evaluation: Evaluation) -> Iterator[pipeline.Batch]:
        """Yields this process's part of the batches of an evaluation."""
        return pipeline.eval_batches(
            self.sources[evaluation.data],
            evaluation.split,
            image_size=evaluation.image_size,
            batch_size=evaluation.batch_size,
            preprocessing=self.preprocessing,
            max_bad_fraction=self.max_bad_fraction,
            share=_share(),
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run(Scorer):
    """A training run, from ``config.build``.

    Attributes:
        stages: The stages of the training.
        learning_rate: The learning rate as a function of the step.
        source: The data set that is trained on.
        train_split: The split of ``source`` that is trained on.
        evaluations: The evaluations; the first one scores the checkpoints.
        augmentation: The changes to training images.
        sampler: The order of training examples, a name in ``sampling.SAMPLERS``.
        init_weights: The weights that training begins with; empty for random numbers.
        init_architecture: timm's name of their network; None if they say it.
        seed: The seed of the run.
    """

    stages: tuple[Stage, ...]
    learning_rate: optax.Schedule
    source: Source
    train_split: str
    evaluations: tuple[Evaluation, ...]
    augmentation: images.Augmentation
    sampler: str
    init_weights: str
    init_architecture: str | None
    seed: int

    def first_state(self) -> TrainState:
        """Returns the state that training begins with, on no mesh yet."""
        return self.training.first_state(self._initialize if self.init_weights else None)

    def prepare(self, first_step: int) -> Preparation:
        """Begins to prepare the stage of a step, if the run goes on from there."""
        preparation = Preparation(
            self.training.train_step,
            mesh=self.training.mesh,
            batches=self.train_batches,
            batch_shapes=self.batch_shapes,
            state=self.training.abstract_state(),
            first_step=first_step,
        )
        if first_step < self.stages[-1].end_step:
            preparation.prepared(stage_at(self.stages, first_step))
        return preparation

    def train_batches(self, stage: Stage, first_step: int) -> Iterator[pipeline.Batch]:
        """Yields this process's part of the batches of a stage, from a step on."""
        return pipeline.train_batches(
            self.source,
            self.train_split,
            stage,
            first_example=examples_before(self.stages, first_step),
            num_batches=stage.end_step - first_step,
            seed=self.seed,
            preprocessing=self.preprocessing,
            augmentation=self.augmentation,
            sampler=self.sampler,
            max_bad_fraction=self.max_bad_fraction,
            share=_share(),
        )

    def batch_shapes(self, stage: Stage) -> Batch:
        """Returns the shapes of a stage's batches on the mesh, over all processes."""
        return abstract_batch(
            stage.image_size, stage.batch_size, self.source.label_shape, self.training.mesh
        )

    def examples(self, step: int) -> list[tuple[int, str]]:
        """Returns the examples of a step's batch: number in the split, and how to find each."""
        return pipeline.examples_at(
            self.source,
            self.train_split,
            self.seed,
            sampler=self.sampler,
            first_example=examples_before(self.stages, step - 1),
            count=self.stages[0].batch_size,
        )

    def _initialize(self, model: Network) -> None:
        """Reads ``init_weights`` into a new model, and logs what was loaded."""
        weights = read_weights(self.init_weights, model.spec, architecture=self.init_architecture)
        others = [
            f"--config.model.{name}={getattr(weights.spec, name)}"
            for name in family_of(model.spec).as_trained
            if getattr(weights.spec, name) != getattr(model.spec, name)
        ]
        # The config has to remember the padding and the epsilon that the weights were trained with.
        if others:
            raise UsageError(
                f"init_weights {self.init_weights!r} were trained otherwise, set {' '.join(others)}"
            )
        loaded = put(weights, model)
        logging.info("beginning with %s (--config.init_architecture changes this)", loaded)
        if weights.spec.preprocessing != self.preprocessing.name:
            logging.warning(
                "the weights expect images of %s, this run prepares %s: "
                "--config.data.preprocessing=%s changes it",
                weights.spec.preprocessing,
                self.preprocessing.name,
                weights.spec.preprocessing,
            )


def _share() -> pipeline.Share:
    return pipeline.Share(jax.process_index(), jax.process_count())
