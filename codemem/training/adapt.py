"""Making an adapter for a model: which layers read memory, how strongly each of their heads does, and how much of the
next token comes from token memory.

    scan      every head of every layer is asked what memory would gain it          training/scan.py
    encode    the bank: documents of the corpus, and distractors, at the layers chosen
    gates     of their heads                                                        training/gates.py
    mixture   the weight of token memory                                            training/mixture.py
    joint     gates again, beside token memory: they learn to say what it does not
    low-rank  if asked for: updates of projections at positions that read memory    models/low_rank.py
    mixture   again, for what is read now
    measure   on documents that nothing was learned from

The result of a stage is kept, so that a run that was cut goes on, and to the same adapter.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from codemem.errors import CodememError
from codemem.memory.bank import Bank
from codemem.memory.entries import Entries
from codemem.memory.manifest import FOLDER
from codemem.memory.store import Store
from codemem.models.adapter import DEFAULT_K, GATE, Adapter, Signature, signature_of, uniform_adapter
from codemem.models.interface import attention_modules
from codemem.models.loading import LoadedModel
from codemem.models.low_rank import untrained
from codemem.models.memorizing import MemorizingModel
from codemem.models.mixture import Mixture
from codemem.models.pretrained import fingerprint_of
from codemem.tensor_files import write_tensors
from codemem.texts import Text, grouped
from codemem.training import mixture as mixtures
from codemem.training.corpus import Budget, Corpus, Repository, bytes_of, hash_of, split
from codemem.training.gates import GateTraining, Piece, Step, drawn, full_pieces
from codemem.training.scan import Scan, choose_layers, scan, starting_bias

Report = Callable[[str, int, int], None]
_FORMAT = 2  # of what the stages leave
# How much is there of what does not belong to the repository that is learned from.
SHARES = (0.0, 0.25, 0.5, 1.0)


@dataclass(frozen=True)
class Options:
    """layers: how many memory layers at most; k: neighbours of a query; steps, joint_steps: of gate training, a piece
    each, alone and beside token memory; rank: of low-rank updates, 0 for none; low_rank_steps: of their training, with
    the gates and beside token memory; context, scored: tokens in a piece, and those of them that are predicted;
    scan_entries: in the bank of the scan, which holds all layers; the other numbers of pieces say how much is read in
    each stage.

    The defaults take a model of 135M parameters less than 30 minutes on two cores.
    """

    layers: int = 4
    k: int = DEFAULT_K
    steps: int = 100
    joint_steps: int = 60
    rank: int = 0
    low_rank_steps: int = 100
    seed: int = 0
    context: int = 512
    scored: int = 256
    scan_pieces: int = 32
    scan_entries: int = 24_000
    mixture_pieces: int = 64
    development_pieces: int = 32
    budget: Budget = field(default_factory=Budget)


def adapt(
    loaded: LoadedModel,
    repositories: Sequence[Repository],
    options: Options,
    folder: Path,
    report: Report = lambda *_: None,
) -> Adapter:
    """Make an adapter for a model.

    folder: where the stages leave their results; those that a run with the same model, corpus and options left are not
    computed again, others are replaced. report: called with (stage, done, total). The model is given back without
    memory; its parameters then need no gradient. Raises CodememError where the model cannot have a memory, or the
    corpus is too small.
    """
    corpus = split(repositories, options.budget, options.seed)
    signature = signature_of(loaded.config, loaded.weights_hash)
    recipe = _digest(signature, corpus, options, str(loaded.model.dtype))
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    run = _Run(loaded, corpus, options, folder, recipe, report)
    found = Scan(**run.stage("scan", run.scan))
    layers = choose_layers(found, options.layers)
    start = replace(
        uniform_adapter(layers, found.gain.shape[1], k=options.k),
        bias={layer: starting_bias(found, layer) for layer in layers},
    )
    model = MemorizingModel(loaded.model, loaded.tokenizer, start)
    try:
        alone = run.gates(model, "gates", options.steps)
        _set_gates(model, alone)
        model.mixture.load_state_dict(_network(run.stage("mixture", lambda: run.mixture(model))))
        gates = run.gates(model, "joint-gates", options.joint_steps, tokens=True)
        _set_gates(model, gates)
        suffix = ""
        if options.rank:
            suffix = f"-{options.rank}-{options.low_rank_steps}"
            updates = untrained(model.base, layers[0], options.rank, options.seed)
            adapter = replace(_with_gates(start, gates), mixture=model.mixture.state_dict(), low_rank=updates)
            bank = model.bank
            model.detach()
            model = MemorizingModel(loaded.model, loaded.tokenizer, adapter, bank)
            gates = run.gates(model, f"low-rank{suffix}", options.low_rank_steps, tokens=True)
            _set_gates(model, gates)
        trained = run.stage(f"joint-mixture{suffix}", lambda: run.mixture(model))
        figures = run.stage(f"development{suffix}", lambda: run.development(model, start, gates, trained))
        entries = int(figures.pop("entries"))
        low_rank = model.low_rank.tensors() if model.low_rank else {}
    finally:
        model.detach()
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    return replace(
        _with_gates(start, gates),
        name=loaded.name,
        mixture=_network(trained),
        low_rank=low_rank,
        signature=signature,
        recipe=_in_words(options) | {"entries": str(entries), "dtype": str(loaded.model.dtype), "digest": recipe},
        corpus=tuple(repository.name for repository in repositories),
        development={name: float(value) for name, value in figures.items()},
        scan=found.as_tensors(),
    )


class _Run:
    """The stages of one calibration. Each gives tensors by name, which `stage` keeps in a file."""

    def __init__(
        self, loaded: LoadedModel, corpus: Corpus, options: Options, folder: Path, recipe: str, report: Report
    ) -> None:
        self.loaded, self.corpus, self.options = loaded, corpus, options
        self.folder, self.recipe, self.report = folder, recipe, report

    def stage(self, name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
        """What an earlier run with this recipe has left, else what `make` gives, which is kept."""
        if (kept := self._kept(name)) is not None:
            return kept
        made = make()
        self._keep(name, made)
        return made

    def _kept(self, name: str) -> dict[str, Tensor] | None:
        try:
            with safe_open(self.folder / f"{name}.safetensors", framework="pt") as file:
                if (file.metadata() or {}).get("recipe") == self.recipe:
                    return {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
        except (OSError, SafetensorError):
            pass  # not there, or damaged: it is made again
        return None

    def _keep(self, name: str, tensors: dict[str, Tensor]) -> None:
        write_tensors(self.folder / f"{name}.safetensors", tensors, {"recipe": self.recipe})

    def scan(self) -> dict[str, Tensor]:
        """Gain, error and mass of all heads of all layers."""
        base, options = self.loaded.model, self.options
        layers = tuple(sorted(attention_modules(base)))
        heads = base.config.get_text_config().num_attention_heads
        model = MemorizingModel(base, self.loaded.tokenizer, uniform_adapter(layers, heads, k=options.k))
        try:
            # Entries of all layers are large, so that a small bank must do; small banks are searched exactly.
            model.bank = model.new_bank("exact")
            for documents in self._groups():
                self.report("encoding for the scan", min(len(model.bank), options.scan_entries), options.scan_entries)
                if len(model.bank) >= options.scan_entries:
                    break
                for (name, _), entries in zip(documents, _encoded(model, documents), strict=True):
                    if len(model.bank) < options.scan_entries:
                        model.bank.add(name, entries)
            self.report("encoding for the scan", options.scan_entries, options.scan_entries)
            cut = [piece for _, piece in self._pieces(model, self.corpus.training, "scan", options.scan_pieces)]
            return scan(model, cut, lambda done, total: self.report("scanning heads", done, total)).as_tensors()
        finally:
            model.detach()

    def gates(self, model: MemorizingModel, name: str, steps: int, *, tokens: bool = False) -> dict[str, Tensor]:
        """The state of `GateTraining` after so many steps from the model's gates; kept after every step."""
        kept = self._kept(name)
        if kept is not None and int(kept["step"]) == steps:
            return kept
        bank = self._bank(model)
        order = self._pieces(model, self.corpus.training, name, steps)
        training = GateTraining(model, bank, self._steps(bank, order, name), tokens=tokens)
        if kept is not None:
            training.restore(kept)
        stage = "training gates" + " beside token memory" * tokens + " with low-rank updates" * bool(model.low_rank)
        while not training.finished:
            self.report(stage, training.step, steps)
            training.advance()
            self._keep(name, training.state())
        self.report(stage, training.step, steps)
        return training.state()

    def mixture(self, model: MemorizingModel) -> dict[str, Tensor]:
        """The state of the mixture, and "lambda", the best constant weight for what it was trained on."""
        model.bank = bank = self._bank(model)
        cut = self._pieces(model, self.corpus.training, "mixture", self.options.mixture_pieces)
        steps = self._steps(bank, cut, "mixture")
        examples = []
        for number, ((document, _), step) in enumerate(zip(cut, steps, strict=True)):
            self.report("reading for the mixture", number, len(cut))
            with bank.without(step.without):
                # One network serves completions with and without attention memory.
                examples.append(mixtures.collect(model, step.piece, document, attention=number % 2 == 0))
        self.report("reading for the mixture", len(cut), len(cut))
        collected = mixtures.joined(examples)
        trained = mixtures.train(
            collected, lambda done, total: self.report("training the mixture", done, total), seed=self.options.seed
        )
        constant = torch.tensor(mixtures.best_constant(collected), dtype=torch.float64)
        return {**trained.state_dict(), "lambda": constant}

    def development(
        self, model: MemorizingModel, start: Adapter, gates: dict[str, Tensor], trained: dict[str, Tensor]
    ) -> dict[str, Tensor]:
        """Nats per token of development documents by what is read, beside how many there are, and the bank's size."""
        model.bank = self._bank(model)
        mixture = Mixture()
        mixture.load_state_dict(_network(trained))
        mixture.requires_grad_(False)
        cut = self._pieces(model, self.corpus.development, "development", self.options.development_pieces)
        number = 0

        def read(attention: bool) -> mixtures.Examples:
            nonlocal number
            examples = []
            for document, piece in cut:
                self.report("measuring", number, 3 * len(cut))
                examples.append(mixtures.collect(model, piece, document, attention=attention))
                number += 1
            return mixtures.joined(examples)

        without, with_attention = read(False), read(True)
        _set_gates(model, {f"{kind}.{n}": t for kind in GATE for n, t in getattr(start, kind).items()})
        untrained = read(True)
        _set_gates(model, gates)
        self.report("measuring", number, number)
        weight = float(trained["lambda"])
        figures = {
            "none": -float(without.log_prob.mean()),
            "attention_untrained": -float(untrained.log_prob.mean()),
            "attention": -float(with_attention.log_prob.mean()),
            "tokens_constant": mixtures.constant(without, weight),
            "tokens": float(mixtures.negative_log_likelihood(mixture, without)),
            "both_constant": mixtures.constant(with_attention, weight),
            "both": float(mixtures.negative_log_likelihood(mixture, with_attention)),
            "lambda": weight,
            "scored": len(without),
            "documents": len({document for document, _ in cut}),
            "entries": len(model.bank),
        }
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in figures.items()}

    def _pieces(
        self, model: MemorizingModel, documents: Sequence[tuple[str, Text]], stage: str, count: int
    ) -> list[tuple[int, Piece]]:
        options = self.options
        available = full_pieces(model, [text for _, text in documents], options.context, options.scored)
        if not available:
            raise CodememError(
                f"no document of the corpus has {options.scored} tokens to predict", "codemem adapt --corpus FOLDER"
            )
        # Only training reads a piece more than once.
        count = count if stage == "gates" else min(count, len(available))
        return drawn(available, count, f"{stage} {options.seed}")

    def _steps(self, bank: Bank, pieces: Sequence[tuple[int, Piece]], stage: str) -> list[Step]:
        """What is read of training documents, each beside all of its own repository and beside a share of everything
        else, which is drawn from SHARES: so what is learned does not depend on how much there is that is of no use."""
        steps = []
        for number, (document, piece) in enumerate(pieces):
            chance = random.Random(f"{stage} {number} {self.options.seed}")
            own = self.corpus.training[document][0] + "/"
            others = [path for path in bank.documents if not path.startswith(own)]
            gone = len(others) - round(chance.choice(SHARES) * len(others))
            steps.append(Step(piece, tuple(chance.sample(others, gone))))
        return steps

    def _groups(self) -> Iterator[list[tuple[str, Text]]]:
        """The memory documents that are encoded together, in order."""
        return grouped(self.corpus.memory, lambda document: bytes_of(document[1]))

    def _bank(self, model: MemorizingModel) -> Bank:
        """The bank of all memory documents. Their entries lie in the folder as blobs until the adapter is made."""
        if isinstance(model.bank, Bank) and len(model.bank):
            return model.bank
        bank = model.new_bank()
        done, total = 0, sum(bytes_of(text) for _, text in self.corpus.memory)
        fingerprint = fingerprint_of(
            self.loaded.name, self.loaded.weights_hash, self.loaded.model.dtype, model.adapter.layers
        )
        with Store(self.folder, create=True) as store:
            store.bind(fingerprint, replace=store.fingerprint not in (None, fingerprint))
            for documents in self._groups():
                self.report("encoding memory", done, total)
                blobs = [store.blob_name(name, hash_of(text)) for name, text in documents]
                # All of a group or none: what a document's numbers are may depend, in the last bit, on its batch.
                if not all(map(store.has, blobs)):
                    for blob, entries in zip(blobs, _encoded(model, documents), strict=True):
                        store.write(blob, entries)
                for blob, (name, _) in zip(blobs, documents, strict=True):
                    bank.add(name, store.read(blob))
                done += sum(bytes_of(text) for _, text in documents)
        self.report("encoding memory", total, total)
        return bank


def _network(mixture: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state of the network alone, without the best constant weight."""
    return {name: tensor for name, tensor in mixture.items() if name != "lambda"}


def _set_gates(model: MemorizingModel, tensors: dict[str, Tensor]) -> None:
    """Set gates, and low-rank updates if the model has some; without tensors of theirs these change nothing."""
    with torch.no_grad():
        for layer, gate in model.gates.items():
            for kind in GATE:
                getattr(gate, kind).copy_(tensors[f"{kind}.{layer}"])
        for name, update in model.low_rank.updates.items() if model.low_rank else ():
            update.copy_(tensors.get(f"low_rank.{name}", torch.zeros_like(update)))


def _with_gates(adapter: Adapter, tensors: dict[str, Tensor]) -> Adapter:
    """The adapter with the gates that `GateTraining.state` has."""
    gates: dict[str, Any] = {kind: {layer: tensors[f"{kind}.{layer}"] for layer in adapter.layers} for kind in GATE}
    return replace(adapter, **gates)


def _encoded(model: MemorizingModel, documents: Sequence[tuple[str, Text]]) -> list[Entries]:
    return model.encode([text for _, text in documents])


def _digest(signature: Signature, corpus: Corpus, options: Options, dtype: str) -> str:
    # What is done before low-rank updates is the same with them; the later stages have these numbers in their names.
    numbers = {name: value for name, value in asdict(options).items() if name not in ("rank", "low_rank_steps")}
    parts = [_FORMAT, asdict(signature), corpus.digest, numbers, dtype]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _in_words(options: Options) -> dict[str, str]:
    numbers = asdict(options)
    budget = numbers.pop("budget")
    return {name: str(value) for name, value in (numbers | {f"{k}_bytes": v for k, v in budget.items()}).items()}
