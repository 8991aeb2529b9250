module khook.kagent.dev/e2e/prometheus-operator

go 1.26.0

// Its CustomResourceDefinitions are read; nothing of it is built.
require github.com/prometheus-operator/prometheus-operator v0.85.0
