# The environment and the code in one image, for machines with Docker and the NVIDIA runtime:
#
#   docker build -t posttrain .
#   docker run --gpus all -v posttrain:/app/outputs posttrain demo
#   docker run --gpus all -v posttrain:/app/outputs posttrain grpo --config configs/grpo_gsm8k_16gb.yaml
#
# Runs, checkpoints and downloaded models are all under /app/outputs: mount a volume there, and the
# same command resumes after a stop. CUDA comes with the packages; the host brings the driver alone.
FROM python:3.11.13-slim-bookworm

# A compiler: Triton builds its launchers with it, and the GGUF export llama.cpp.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends build-essential git \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /app

# The environment first: its layer is built again only when the lock changes. uv's cache stays
# outside the image.
ENV UV_LINK_MODE=copy UV_CACHE_DIR=/var/cache/uv
COPY run requirements.lock ./
RUN --mount=type=cache,target=/var/cache/uv ./run python -c ''

COPY . .

ENV HF_HOME=/app/outputs/.huggingface
VOLUME /app/outputs
ENTRYPOINT ["/app/run"]
CMD ["help"]
