// Health says what GitOps tools think of objects: Argo CD by its Lua script, Flux by kstatus and by
// health check expressions.
//
// It reads {"lua": SCRIPT, "expressions": {...}, "objects": {NAME: OBJECT}} from standard input and writes
// {NAME: {"argo": …, "argoMessage": …, "kstatus": …, "flux": …}}.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/fluxcd/cli-utils/pkg/kstatus/status"
	"github.com/fluxcd/pkg/apis/kustomize"
	"github.com/fluxcd/pkg/runtime/cel"
	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
)

type input struct {
	Lua         string                           `json:"lua"`
	Expressions kustomize.HealthCheckExpressions `json:"expressions"`
	Objects     map[string]json.RawMessage       `json:"objects"`
}

type health struct {
	Argo        string `json:"argo"`
	ArgoMessage string `json:"argoMessage"`
	Kstatus     string `json:"kstatus"`
	Flux        string `json:"flux"`
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	var in input
	if err := json.NewDecoder(os.Stdin).Decode(&in); err != nil {
		return fmt.Errorf("the input: %w", err)
	}
	evaluator, err := cel.NewStatusEvaluator(&in.Expressions)
	if err != nil {
		return fmt.Errorf("the expressions: %w", err)
	}
	out := map[string]health{}
	for name, raw := range in.Objects {
		found, err := judge(in.Lua, evaluator, raw)
		if err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		out[name] = *found
	}
	return json.NewEncoder(os.Stdout).Encode(out)
}

func judge(script string, evaluator *cel.StatusEvaluator, raw []byte) (*health, error) {
	// As the tools read it: whole numbers stay whole.
	var object unstructured.Unstructured
	if err := object.UnmarshalJSON(raw); err != nil {
		return nil, err
	}
	argo, message, err := argo(script, object.Object)
	if err != nil {
		return nil, fmt.Errorf("the Lua: %w", err)
	}
	general, err := status.Compute(&object)
	if err != nil {
		return nil, fmt.Errorf("kstatus: %w", err)
	}
	flux, err := evaluator.Evaluate(context.Background(), &object)
	if err != nil {
		// As Flux's reader of statuses does: an expression about a status that is not there.
		flux = &status.Result{Status: status.UnknownStatus}
	}
	return &health{argo, message, string(general.Status), string(flux.Status)}, nil
}

// The libraries that a health script has in Argo CD without useOpenLibs; its os, which knows the time only,
// is left out, so a script that asks for it fails here.
var libraries = map[string]lua.LGFunction{
	lua.LoadLibName: lua.OpenPackage,
	lua.BaseLibName: lua.OpenBase,
	lua.TabLibName:  lua.OpenTable,
}

func argo(script string, object map[string]any) (string, string, error) {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for _, name := range []string{lua.LoadLibName, lua.BaseLibName, lua.TabLibName} {
		state.Push(state.NewFunction(libraries[name]))
		state.Push(lua.LString(name))
		state.Call(1, 0)
	}
	limit, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	state.SetContext(limit)
	state.SetGlobal("obj", value(state, object))
	if err := state.DoString(script); err != nil {
		return "", "", err
	}
	table, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		return "", "", errors.New("it returns no table")
	}
	word := func(key string) string { return lua.LVAsString(table.RawGetString(key)) }
	switch code := word("status"); code {
	case "Healthy", "Progressing", "Degraded", "Suspended", "Missing", "Unknown":
		return code, word("message"), nil
	default:
		return "", "", fmt.Errorf("%q is no status of Argo CD", code)
	}
}

func value(state *lua.LState, of any) lua.LValue {
	switch of := of.(type) {
	case bool:
		return lua.LBool(of)
	case string:
		return lua.LString(of)
	case int64:
		return lua.LNumber(of)
	case float64:
		return lua.LNumber(of)
	case []any:
		table := state.CreateTable(len(of), 0)
		for _, item := range of {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.CreateTable(0, len(of))
		for key, item := range of {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}
