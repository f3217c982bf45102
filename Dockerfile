# Two stages: the first installs and compiles, the second carries what runs.
FROM python:3.11-slim AS build
WORKDIR /app
RUN python -m venv /opt/venv
COPY pyproject.toml constraints.txt README.md LICENSE ./
COPY server server
COPY batching batching
COPY engines engines
COPY quota quota
COPY loadtest loadtest
COPY models/tiny-chat models/tiny-chat
# TORCH_INDEX may name PyTorch's index of CPU builds: the default one brings CUDA with it.
ARG TORCH_INDEX=""
RUN /opt/venv/bin/pip install --no-cache-dir ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} \
    -c constraints.txt -e '.[redis,postgres,triton,onnx,pii,otel]'

# The kernels for CPUs of every kind, since the second stage has no compiler.
RUN apt-get update && apt-get install -y --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
RUN PENSTOCK_KERNEL_DIR=/opt/kernels /opt/venv/bin/python -m engines.torch.cpu.library amx avx512 avx2 plain

FROM python:3.11-slim
RUN useradd --uid 10001 --create-home penstock \
    && install -d -o penstock -g penstock /data
COPY --from=build /opt/venv /opt/venv
COPY --from=build /opt/kernels /opt/kernels
COPY --from=build /app /app
ENV PATH=/opt/venv/bin:$PATH \
    PYTHONUNBUFFERED=1 \
    PENSTOCK_HOST=0.0.0.0 \
    PENSTOCK_DATA_DIR=/data \
    PENSTOCK_KERNEL_DIR=/opt/kernels
WORKDIR /app
USER penstock
VOLUME /data
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=60s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/healthz', timeout=2)"]
# The process itself is PID 1: it gets SIGTERM, drains, and ends its workers.
CMD ["penstock", "serve"]
