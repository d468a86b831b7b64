# JointQuant in a container. Models and artifacts lie in the folder that is mounted at /models; --user makes them yours.
#
#   docker build --tag jointquant .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/models" jointquant \
#       quantize ./Llama-3.2-1B --out ./llama-int4 --for vllm --calib ./calibration.txt
#
# With NVIDIA GPUs add --gpus all.
FROM python:3.12-slim

# A C compiler: products on a CPU are fastest in a small program that is compiled when it is first asked for.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*

COPY pyproject.toml README.md LICENSE constraints.txt /source/
COPY src /source/src
RUN python -m pip install --no-cache-dir --constraint /source/constraints.txt /source && rm -r /source

# Caches of downloads go where any user may write.
ENV HF_HOME=/tmp/huggingface HOME=/tmp
WORKDIR /models
ENTRYPOINT ["jointquant"]
CMD ["--help"]
