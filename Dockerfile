# V-Net for prostate MR on a CPU:
#   docker build -t vnet .
#   docker run --rm -v "$PWD:/data" vnet predict --ckpt_path vnet_prostate --input scan.nii.gz
# For research; not a medical device. MindSpore on GPU or Ascend needs an image with CUDA or CANN.
FROM python:3.11-slim

# g++ compiles the fast convolution at its first use; libgomp1 is needed by MindSpore.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ libgomp1 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /package
COPY pyproject.toml README.md LICENSE NOTICE requirements*.txt ./
COPY src ./src
RUN ln -s src vnet_mindspore \
    && pip install --no-cache-dir '.[dicom,onnx,tensorboard]' \
    && rm -rf /package

WORKDIR /data
ENTRYPOINT ["vnet"]
CMD ["--help"]
