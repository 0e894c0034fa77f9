"""The evaluator `finetune`."""
