//go:build tools

// Package tools pins the Helm 3 the tests run.
package tools

import _ "helm.sh/helm/v3/cmd/helm"
