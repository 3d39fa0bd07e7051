# The images of segstream: service (CPU), service-cuda, and triton.
#
#     docker build --target service -t segstream .
#
# Versions are those of constraints.txt. Base images and the packages' index are arguments, so that
# mirrors of one's own can take their place.

ARG PYTHON_IMAGE=python:3.11-slim-bookworm
# The same with a C++ compiler.
ARG BUILD_IMAGE=python:3.11-bookworm
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.06-py3
# An image of nothing but wheels, to build without an index (with PIP_NO_INDEX=1).
ARG WHEELS_IMAGE=scratch

FROM ${WHEELS_IMAGE} AS wheels

# What the package needs, apart from the package itself: a change of its source installs nothing anew.
FROM ${BUILD_IMAGE} AS requirements
COPY pyproject.toml constraints.txt /requirements/
WORKDIR /requirements
# The wheels of a CUDA torch name their own versions of nvidia's packages.
RUN python3 -c "import tomllib; project = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  extras = project['optional-dependencies']; \
  print(*project['dependencies'], *extras['otel'], *extras['s3'], sep='\n')" > requirements.txt \
  && sed '/^nvidia-/d' constraints.txt > constraints-cuda.txt

FROM ${BUILD_IMAGE} AS build
COPY --from=requirements /requirements/*.txt /requirements/
WORKDIR /requirements
ARG PIP_NO_INDEX
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_FIND_LINKS=/wheels
RUN --mount=type=bind,from=wheels,target=/wheels python3 -m venv /build \
  && /build/bin/pip install -c constraints.txt setuptools
# No pip in it: nothing can be installed into a running service.
RUN python3 -m venv --without-pip /opt/segstream

FROM build AS package
# A wheel's files carry this time, so that the same source gives the same wheel.
ENV SOURCE_DATE_EPOCH=1767225600
# The commit, which the service tells at /v1/info.
ARG SEGSTREAM_REVISION
WORKDIR /source
COPY pyproject.toml setup.py MANIFEST.in README.md LICENSE ./
COPY service service
RUN /build/bin/pip wheel --no-deps --no-build-isolation --no-index -w /dist . \
  && install -D -t /lib-openmp "$(g++ -print-file-name=libgomp.so.1)"

FROM build AS packages-cpu
ARG PIP_NO_INDEX
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
RUN --mount=type=bind,from=wheels,target=/wheels \
  /build/bin/pip --python /opt/segstream/bin/python3 install \
    --extra-index-url "${TORCH_INDEX}" -c constraints.txt -r requirements.txt \
  && rm -r /opt/segstream/lib/python3*/site-packages/torch/include
RUN --mount=type=bind,from=package,source=/dist,target=/dist \
  /build/bin/pip --python /opt/segstream/bin/python3 install --no-deps --no-index /dist/*.whl

FROM build AS packages-cuda
ARG PIP_NO_INDEX
RUN --mount=type=bind,from=wheels,target=/wheels \
  /build/bin/pip --python /opt/segstream/bin/python3 install \
    -c constraints-cuda.txt -r requirements.txt \
  && rm -r /opt/segstream/lib/python3*/site-packages/torch/include
RUN --mount=type=bind,from=package,source=/dist,target=/dist \
  /build/bin/pip --python /opt/segstream/bin/python3 install --no-deps --no-index /dist/*.whl

FROM ${TRITON_IMAGE} AS triton
USER 0
ARG PIP_NO_INDEX
COPY --from=requirements /requirements /requirements
# Triton's stubs run the first Python on the PATH, and heed no PYTHONPATH.
RUN --mount=type=bind,from=wheels,target=/wheels --mount=type=bind,from=package,source=/dist,target=/dist \
  python3 -m venv --without-pip /opt/segstream \
  && python3 -m pip --python /opt/segstream/bin/python3 install --no-cache-dir \
    --disable-pip-version-check --find-links /wheels \
    -c /requirements/constraints-cuda.txt -r /requirements/requirements.txt \
  && python3 -m pip --python /opt/segstream/bin/python3 install --no-cache-dir --no-deps --no-index \
    /dist/*.whl \
  && useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin segstream
COPY --from=package /lib-openmp /opt/segstream/lib
COPY deploy/triton/backends /opt/tritonserver/backends
COPY model_repository /opt/segstream/models
ENV PATH=/opt/segstream/bin:${PATH} PYTHONUNBUFFERED=1 \
    LD_LIBRARY_PATH=/opt/segstream/lib:${LD_LIBRARY_PATH} XDG_CACHE_HOME=/tmp/cache
USER 10001:10001
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=5s --timeout=5s --start-period=120s --retries=3 CMD ["bash", "-c", \
  "exec 3<>/dev/tcp/127.0.0.1/8000 && printf 'GET /v2/health/ready HTTP/1.0\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200'"]
ENTRYPOINT ["segstream"]
CMD ["triton", "--host", "0.0.0.0", "--model-repository", "/opt/segstream/models"]

FROM ${PYTHON_IMAGE} AS runtime
RUN useradd --uid 10001 --no-create-home --shell /usr/sbin/nologin segstream \
  && install -d -o segstream -g segstream /var/lib/segstream/clips
COPY --from=package /lib-openmp /opt/segstream/lib
ENV PATH=/opt/segstream/bin:${PATH} PYTHONUNBUFFERED=1 LD_LIBRARY_PATH=/opt/segstream/lib \
    XDG_CACHE_HOME=/tmp/cache SEGSTREAM_HOST=0.0.0.0 SEGSTREAM_LOG_FORMAT=json \
    SEGSTREAM_CLIP_STORAGE=/var/lib/segstream/clips
USER 10001:10001
EXPOSE 50051 8080
# Whether the process answers, not whether it takes sessions: a replica that drains is not ill.
# bash, because starting Python takes longer than a busy machine may need for an answer.
HEALTHCHECK --interval=5s --timeout=5s --start-period=60s --retries=3 CMD ["bash", "-c", \
  "exec 3<>/dev/tcp/127.0.0.1/8080 && printf 'GET /livez HTTP/1.0\\r\\nHost: localhost\\r\\n\\r\\n' >&3 && head -1 <&3 | grep -q ' 200'"]
ENTRYPOINT ["segstream"]
CMD ["serve"]

FROM runtime AS service-cuda
COPY --from=packages-cuda /opt/segstream /opt/segstream
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility

FROM runtime AS service
COPY --from=packages-cpu /opt/segstream /opt/segstream
