//go:build tools

// Package tools pins the kubeconform the tests run.
package tools

import _ "github.com/yannh/kubeconform/cmd/kubeconform"
