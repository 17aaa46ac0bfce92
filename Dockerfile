# An image with sparsetrain, for Kubernetes and whatever else runs containers. For CPUs, and for NVIDIA GPUs:
#   docker build -t sparsetrain .
#   docker build -t sparsetrain:cuda --build-arg TORCH_INDEX=https://download.pytorch.org/whl/cu128 .
# TORCH_INDEX may be a mirror of yours. Tokens and keys come at run time, from the environment; none belongs in here.
ARG PYTHON=3.11

FROM python:${PYTHON}-slim AS wheel
WORKDIR /source
COPY pyproject.toml README.md LICENSE ./
COPY sparsetrain sparsetrain
RUN pip wheel --no-cache-dir --no-deps --wheel-dir /wheels .

FROM python:${PYTHON}-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
ARG EXTRAS=report,s3,submit
# g++ compiles the kernels for the machine at first use; KubeRay asks pods for their health with wget.
RUN apt-get update \
    && apt-get install -y --no-install-recommends g++ wget \
    && rm -rf /var/lib/apt/lists/*
RUN pip install --no-cache-dir --index-url "${TORCH_INDEX}" "torch>=2.9,<2.14"
COPY --from=wheel /wheels /wheels
RUN pip install --no-cache-dir "$(echo /wheels/*.whl)[${EXTRAS}]"
RUN useradd --create-home --uid 1000 sparsetrain \
    && install -d -o sparsetrain -g sparsetrain /runs
USER 1000
WORKDIR /home/sparsetrain
CMD ["sparsetrain", "--help"]
