"""The Python-based backend ``lmanet``: the door between Triton's requests and the worker.

Triton imports this inside a stub process of its own. Tensors cross as DLPack capsules: this version
of Triton misreads arrays of numpy 2.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.dlpack as dlpack
import triton_python_backend_utils as pb_utils

from segstream.errors import SegstreamError
from segstream.telemetry.logging import configure_logging
from segstream.triton import contract
from segstream.triton.worker import Answer, Question, Worker


class TritonPythonModel:
    """What Triton drives: one per instance of a model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model of this version's folder."""
        configure_logging("console", "info")
        folder = Path(args["model_repository"], args["model_version"])
        is_gpu = args["model_instance_kind"] == "GPU"
        device = f"cuda:{args['model_instance_device_id']}" if is_gpu else "cpu"
        self._worker = Worker(args["model_name"], folder, device)
        self._metrics = _Metrics(args["model_name"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """A response for each request; what is wrong with one is told by its own."""
        responses: list[Any] = [None] * len(requests)
        questions: dict[int, Question] = {}
        for index, request in enumerate(requests):
            parameters = json.loads(request.parameters() or "{}")
            try:
                if request.is_cancelled():
                    responses[index] = _failed("the request was cancelled")
                elif parameters.get(contract.ASK) == contract.DESCRIBE:
                    responses[index] = self._describe(parameters)
                else:
                    questions[index] = _question(request, parameters)
            except (KeyError, ValueError, TypeError) as error:
                responses[index] = _failed(f"{contract.BACKEND}: bad request: {error!r}")
        answers = self._worker.answer(list(questions.values()))
        for index, answer in zip(questions, answers, strict=True):
            responses[index] = _response(requests[index], answer)
        self._metrics.observe(answers, len(self._worker.pools))
        return responses

    def _describe(self, parameters: dict[str, Any]) -> Any:
        description = self._worker.describe(parameters.get(contract.POOL, ""))
        return pb_utils.InferenceResponse([_report(description.encode())])


class _Metrics:
    """What Triton's own endpoint tells of a model besides its own figures."""

    def __init__(self, model: str) -> None:
        kinds = pb_utils.MetricFamily
        self._labels = {"model": model}
        self._families: list[Any] = []  # a metric lives no longer than its family
        self._frames = self._metric("lmanet_frames_total", "Frames computed.", kinds.COUNTER)
        self._failures = self._metric(
            "lmanet_failed_frames_total", "Frames refused or failed.", kinds.COUNTER
        )
        self._pools = self._metric("lmanet_mapped_pools", "Page pools mapped now.", kinds.GAUGE)
        self._stages = {
            stage: self._metric(f"lmanet_{stage}_seconds_total", text, kinds.COUNTER)
            for stage, text in (
                ("encode", "Time in the encoder and the memory heads, by batch."),
                ("memory_read", "Time reading the memory, by batch."),
                ("fuse_decode", "Time in fusion and decoder, by batch."),
            )
        }

    def observe(self, answers: Sequence[Answer | SegstreamError], num_pools: int) -> None:
        results = [answer.result for answer in answers if isinstance(answer, Answer)]
        self._frames.increment(len(results))
        self._failures.increment(len(answers) - len(results))
        self._pools.set(num_pools)
        for result in results:
            for stage, seconds in result.stage_seconds.items():
                self._stages[stage].increment(seconds / result.batch_size)

    def _metric(self, name: str, text: str, kind: Any) -> Any:
        family = pb_utils.MetricFamily(name=name, description=text, kind=kind)
        self._families.append(family)
        return family.Metric(labels=self._labels)


def _question(request: Any, parameters: dict[str, Any]) -> Question:
    outputs = request.requested_output_names()
    frame, keys, values = (
        _input(request, name) for name in (contract.FRAME, contract.KEYS, contract.VALUES)
    )
    if frame is None:
        raise KeyError(contract.FRAME)
    return Question(
        frame[0],
        str(parameters[contract.DIGEST]),
        contract.LABEL_MAP in outputs,
        pool=str(parameters.get(contract.POOL, "")),
        read_slots=tuple(map(int, str(parameters.get(contract.READ_SLOTS, "")).split())),
        write_slot=int(parameters.get(contract.WRITE_SLOT, -1)),
        keys=None if keys is None else keys[0],
        values=None if values is None else values[0],
        wants_page=contract.KEY in outputs,
        wants_confidence=contract.CONFIDENCE in outputs,
    )


def _input(request: Any, name: str) -> Any:
    """The array of an input, None where the request has none."""
    tensor = pb_utils.get_input_tensor_by_name(request, name)
    return None if tensor is None else dlpack.from_dlpack(tensor.to_dlpack()).numpy()


def _response(request: Any, answer: Answer | SegstreamError) -> Any:
    if isinstance(answer, SegstreamError):
        return _failed(contract.error_to_text(answer))
    result = answer.result
    report = {"batch_size": result.batch_size, "stage_seconds": result.stage_seconds}
    made = {
        contract.LABEL_MAP: result.label_map,
        contract.CONFIDENCE: result.confidence,
        contract.KEY: answer.key,
        contract.VALUE: answer.value,
    }
    tensors = [
        _tensor(name, array[None])
        for name, array in made.items()
        if array is not None and name in request.requested_output_names()
    ]
    return pb_utils.InferenceResponse([*tensors, _report(json.dumps(report).encode())])


def _report(text: bytes) -> Any:
    return _tensor(contract.REPORT, np.frombuffer(bytearray(text), np.uint8)[None])


def _tensor(name: str, array: np.ndarray) -> Any:
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return pb_utils.Tensor.from_dlpack(name, tensor)


def _failed(text: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(text))
