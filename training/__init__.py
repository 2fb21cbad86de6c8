"""Training, distillation and quantization-aware fine-tuning."""
