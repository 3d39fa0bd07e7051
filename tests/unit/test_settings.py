import os
from typing import Any

import pytest
from pydantic import ValidationError

from segstream.settings import Settings


@pytest.fixture(autouse=True)
def _empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.upper().startswith(("SEGSTREAM_", "OTEL_")):
            monkeypatch.delenv(name)


def settings(**options: Any) -> Settings:
    return Settings(**options)


def test_defaults_serve_one_machine_on_loopback() -> None:
    default = settings()
    assert default.host == "127.0.0.1"
    assert (default.port, default.http_port) == (50051, 8080)
    assert default.models == ["lmanet-erfnet-camvid"]
    assert default.device == "cpu"
    assert default.ready_file is None


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_told_what_it_is_for(name: str) -> None:
    assert Settings.model_fields[name].description


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("HOST", "0.0.0.0", "0.0.0.0"),
        ("PORT", "0", 0),
        ("MODELS", "lmanet-erfnet-camvid", ["lmanet-erfnet-camvid"]),
        ("MODELS", "a.safetensors, b,", ["a.safetensors", "b"]),
        ("MODELS", '["a.safetensors", "b, c"]', ["a.safetensors", "b, c"]),
        (
            "ALLOWED_ORIGINS",
            "https://a.example,http://B:8080",
            ["https://a.example", "http://b:8080"],
        ),
        ("MAX_SESSIONS", "7", 7),
        ("IDLE_SECONDS", "1.5", 1.5),
        ("LOG_FORMAT", "json", "json"),
    ],
)
def test_environment_sets_what_its_prefix_names(
    monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object
) -> None:
    monkeypatch.setenv(f"SEGSTREAM_{name}", text)
    assert getattr(settings(), name.lower()) == value


def test_environment_without_the_prefix_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", "1")
    monkeypatch.setenv("HOST", "example.org")
    assert settings() == Settings.model_construct()


def test_other_names_with_the_prefix_are_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSTREAM_IMAGE_TAG", "1.0")
    settings()


def test_options_go_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGSTREAM_PORT", "1")
    assert settings(port=2).port == 2


OUT_OF_BOUNDS: list[tuple[str, Any]] = [
    ("port", -1),
    ("port", 65536),
    ("http_port", 70000),
    ("models", []),
    ("num_threads", -1),
    ("precision", "float8"),
    ("max_batch_size", 0),
    ("max_batch_size", 257),
    ("max_sessions", 0),
    ("max_memory_bytes", 1024),
    ("max_pending_frames", 0),
    ("max_pending_frames", 65),
    ("max_message_bytes", 1),
    ("max_message_bytes", 2**31),
    ("max_image_pixels", 63),
    ("idle_seconds", 0),
    ("idle_seconds", float("nan")),
    ("drain_seconds", -0.1),
    ("log_format", "xml"),
    ("log_level", "loud"),
]


@pytest.mark.parametrize(("name", "value"), OUT_OF_BOUNDS)
def test_value_out_of_bounds_is_refused_with_its_name(name: str, value: object) -> None:
    with pytest.raises(ValidationError) as refused:
        settings(**{name: value})
    (fault,) = refused.value.errors()
    assert fault["loc"] == (name,)
    assert fault["input"] is value


def test_bad_value_in_the_environment_is_refused_with_its_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SEGSTREAM_MAX_SESSIONS", "many")
    with pytest.raises(ValidationError, match="max_sessions") as refused:
        settings()
    assert refused.value.errors()[0]["input"] == "many"


@pytest.mark.parametrize("text", ["", " , ", "[]", '["a"', "[1]"])
def test_no_list_of_models_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv("SEGSTREAM_MODELS", text)
    with pytest.raises(ValidationError, match="models"):
        settings()


@pytest.mark.parametrize("address", ["", "localhost", "http://localhost:8001", "localhost:port"])
def test_an_address_of_triton_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(ValidationError, match="triton"):
        Settings(engine="triton", triton=address)


@pytest.mark.parametrize("text", ["example.org", "*", "https://a.example/", "ftp://a.example"])
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is not an origin"):
        settings(allowed_origins=[text])


@pytest.mark.parametrize("text", ["https://a.example", "a.example:80", "a.*", "", "[::1]"])
def test_what_is_no_name_of_a_host_is_refused(text: str) -> None:
    with pytest.raises(ValidationError, match="is no name of a host"):
        settings(allowed_hosts=[text])


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ({"tls_cert": "a"}, "tls_cert is given without tls_key"),
        ({"tls_key": "a"}, "tls_key is given without tls_cert"),
        ({"tls_client_ca": "a"}, "tls_client_ca is given without tls_cert"),
    ],
)
def test_half_of_tls_is_refused(files: dict[str, str], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        settings(**files)


def test_settings_do_not_change() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        settings().port = 1  # type: ignore[misc]


@pytest.mark.parametrize(
    ("environment", "endpoint"),
    [
        ({}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c:4318"}, "http://c:4318/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c/otlp/"}, "http://c/otlp/v1/traces"),
        ({"OTEL_EXPORTER_OTLP_TRACES_ENDPOINT": "https://c/in"}, "https://c/in"),
        (
            {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "SEGSTREAM_OTLP_ENDPOINT": "http://d"},
            "http://d/v1/traces",
        ),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_SDK_DISABLED": "true"}, None),
        ({"OTEL_EXPORTER_OTLP_ENDPOINT": "http://c", "OTEL_TRACES_EXPORTER": "none"}, None),
    ],
)
def test_traces_go_where_the_environment_of_opentelemetry_says(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], endpoint: str | None
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert settings().otlp_endpoint == endpoint


@pytest.mark.parametrize(
    ("sampler", "argument", "ratio"),
    [
        ("", "", 0.1),
        ("parentbased_traceidratio", "0.25", 0.25),
        ("traceidratio", "", 1.0),
        ("parentbased_always_on", "", 1.0),
        ("always_off", "", 0.0),
    ],
)
def test_the_part_that_is_traced_is_what_the_environment_of_opentelemetry_says(
    monkeypatch: pytest.MonkeyPatch, sampler: str, argument: str, ratio: float
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", sampler)
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", argument)
    assert settings().trace_ratio == ratio


@pytest.mark.parametrize(
    ("name", "value", "field"),
    [
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4318", "otlp_endpoint"),
        ("OTEL_TRACES_SAMPLER_ARG", "2", "trace_ratio"),
        ("OTEL_TRACES_SAMPLER_ARG", "many", "trace_ratio"),
    ],
)
def test_a_fault_in_the_environment_of_opentelemetry_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, field: str
) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "1")
    monkeypatch.setenv(name, value)
    with pytest.raises(ValidationError) as error:
        settings()
    assert error.value.errors()[0]["loc"] == (field,)
