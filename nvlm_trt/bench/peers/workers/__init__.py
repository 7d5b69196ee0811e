"""Programs that run in the environments of others' engines. They import nothing of nvlm_trt, which is not there."""
