# Everything runs in .venv, made here. `make PYTHON=python3.12 demo` chooses the interpreter.
PYTHON ?= python3
BIN := .venv/bin
MODEL := runtime/models/gmin_x4

.PHONY: demo test test-gpu lint types format models endurance clean

demo: .venv/runtime  ## upscale the shipped photo on the CPU; installs the light runtime only
	$(BIN)/python runtime/infer.py data/chelsea.png -o out/chelsea_x4.png

test: .venv/dev  ## run the suite
	$(BIN)/python -m pytest --ignore tests/training
	$(BIN)/python -m pytest tests/training  # apart: beside every engine in one process it crashed once; the cause is open

test-gpu:  ## the tests that need an NVIDIA GPU, by $(PYTHON), which must see its TensorRT (docs/jetson.md)
	$(PYTHON) -m pytest -m gpu tests/runtime/test_tensorrt.py tests/runtime/test_ort_providers.py tests/training/test_depthwise_gpu.py

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: .venv/dev
	$(BIN)/mypy
	$(BIN)/python tests/check_tensorrt_types.py

format: .venv/dev
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# what a search for a drop of 0.043 dB chose on a processor with VNNI; node_mul_783 is the last product, of LKA
KEPT := node_add_25 node_conv2d node_gelu_1 node_mul_71 node_mul_783 node_silu
models: .venv/dev  ## two hours: make the shipped files again from the weights (needs the calibration and training pictures)
	$(BIN)/python export/to_onnx.py --ckpt model/weights/gmin_x4.safetensors -o $(MODEL).onnx
	$(BIN)/python quantize/qat.py $(MODEL).onnx -o $(MODEL)_int8.onnx --target tensorrt --run runs/qat_tensorrt
	$(BIN)/python quantize/qat.py $(MODEL).onnx -o $(MODEL)_int8_cpu.onnx --target cpu $(KEPT:%=--keep-float %) --run runs/qat_cpu
	$(BIN)/python quantize/qat.py $(MODEL).onnx -o $(MODEL)_int8_openvino.onnx --target openvino --run runs/qat_openvino
	$(BIN)/python benchmarks/before_after.py data/chelsea.png -o docs/images/chelsea_before_after.png --engine ort:$(MODEL)_int8_cpu.onnx --part 96x72 --at 120,80

endurance: .venv/dev  ## a quarter of an hour: 200 kills over 100 pictures, 100 over a video, and 500 pictures in one process
	$(BIN)/python benchmarks/interruptions.py --kills 200 --pictures 100
	$(BIN)/python benchmarks/interruptions.py --kills 100 --video --frames 1200
	$(BIN)/python benchmarks/long_run.py --pictures 500 --size 64x48 --vary

clean:
	rm -rf .venv out build *.egg-info

.venv/bin/pip:
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip

.venv/runtime: .venv/bin/pip pyproject.toml
	$(BIN)/pip install --quiet --editable '.[cpu]'
	mkdir -p out
	touch $@

.venv/dev: .venv/bin/pip pyproject.toml constraints-dev.txt
	$(BIN)/pip install --quiet --editable '.[dev]' --constraint constraints-dev.txt
	mkdir -p out
	touch $@
