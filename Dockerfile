# The command on an NVIDIA GPU: CUDA's libraries come with jax[cuda12], so that the host needs its driver alone (525 or later)
# and NVIDIA's container toolkit.
#   docker build -t metadd_jax .
#   docker run --rm --gpus all -v "$PWD/work:/work" metadd_jax distill smoke
FROM python:3.11-slim

# Without these two the toolkit would mount no driver into an image that is not NVIDIA's own.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    PIP_NO_CACHE_DIR=1 \
    PIP_DISABLE_PIP_VERSION_CHECK=1 \
    METADD_CACHE=/work/cache

WORKDIR /source
COPY constraints.txt pyproject.toml README.md LICENSE ./
COPY metadd_jax ./metadd_jax
RUN pip install --constraint constraints.txt "jax[cuda12]" ".[experiments,logging]" && rm -r /source/*

# Not root: what a run writes belongs to the user of the host with this number (--user "$(id -u)" for another).
RUN useradd --create-home --uid 1000 metadd && mkdir /work && chown metadd /work
USER metadd
WORKDIR /work
ENTRYPOINT ["metadd"]
CMD ["--help"]
