# JointQuant in a container. Models and artifacts lie in the folder that is mounted at /models; --user makes them yours.
#
#   docker build --tag jointquant .
#   docker run --rm --user "$(id -u):$(id -g)" --volume "$PWD:/models" jointquant \
#       quantize ./Llama-3.2-1B --out ./llama-int4 --for vllm --calib ./calibration.txt
#
# With NVIDIA GPUs add --gpus all.
FROM python:3.12-slim

COPY pyproject.toml README.md LICENSE constraints.txt /source/
COPY src /source/src
RUN python -m pip install --no-cache-dir --constraint /source/constraints.txt /source && rm -r /source

# Caches of downloads go where any user may write.
ENV HF_HOME=/tmp/huggingface HOME=/tmp
WORKDIR /models
ENTRYPOINT ["jointquant"]
CMD ["--help"]
