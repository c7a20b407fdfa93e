# The CUDA image. JAX's wheels bring CUDA and cuDNN; the host needs NVIDIA's driver and container toolkit.
#
#     docker build --tag alexnet-jax .                            CUDA 12
#     docker build --tag alexnet-jax --build-arg CUDA=cuda13 .    CUDA 13
#
# docs/operations.md says how to run it.
FROM python:3.12-slim

# The extra to install: cuda12 or cuda13.
ARG CUDA=cuda12

ENV PYTHONUNBUFFERED=1

RUN useradd --create-home --uid 1000 alexnet \
    && install --directory --owner=alexnet --group=alexnet /runs /data
WORKDIR /opt/alexnet-jax

COPY pyproject.toml README.md LICENSE train.py ./
COPY alexnet_jax alexnet_jax
COPY configs configs
RUN pip install --no-cache-dir --editable ".[${CUDA}]"

USER 1000
VOLUME ["/runs", "/data"]
# In exec form, so that SIGTERM reaches Python: docker stop leaves a checkpoint.
ENTRYPOINT ["alexnet-jax"]
CMD ["doctor", "--workdir", "/runs"]
