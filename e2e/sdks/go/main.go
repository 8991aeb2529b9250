// An agent on the Go A2A library, which speaks A2A 1.0, and 0.3 too with --compat. Marks in the prompt say
// how it answers.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"iter"
	"log"
	"net"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/a2aproject/a2a-go/v2/a2a"
	"github.com/a2aproject/a2a-go/v2/a2acompat/a2av0"
	"github.com/a2aproject/a2a-go/v2/a2asrv"
)

const (
	path    = "/invoke"
	pathOld = "/invoke/v0"
)

var mark = regexp.MustCompile(`\[\[(\w+)(?:=([\w.]+))?\]\]`)

// An end is what a mark makes of a task that is no success.
type end struct {
	mark  string
	state a2a.TaskState
	words string
}

var ends = []end{
	{"failed", a2a.TaskStateFailed, "The cluster could not be reached."},
	{"ask", a2a.TaskStateInputRequired, "Which namespace do you mean?"},
	{"auth", a2a.TaskStateAuthRequired, "Sign in to the cluster first."},
	{"reject", a2a.TaskStateRejected, "This is no question about a cluster."},
	{"cancel", a2a.TaskStateCanceled, "Stopped by its owner."},
}

// Marks are how a prompt wants to be answered.
type marks struct {
	values map[string]string
	answer string
}

func read(message *a2a.Message) marks {
	var prompt strings.Builder
	for _, part := range message.Parts {
		prompt.WriteString(part.Text())
	}
	found := marks{values: map[string]string{}}
	for _, match := range mark.FindAllStringSubmatch(prompt.String(), -1) {
		found.values[match[1]] = match[2]
	}
	first := ""
	for line := range strings.Lines(mark.ReplaceAllString(prompt.String(), "")) {
		if first = strings.TrimSpace(line); first != "" {
			break
		}
	}
	found.answer = "Investigated: " + first
	return found
}

func (m marks) has(name string) bool {
	_, has := m.values[name]
	return has
}

// Waits as long as [[delay]] says, or until the run is cancelled.
func (m marks) wait(ctx context.Context) error {
	seconds, _ := strconv.ParseFloat(m.values["delay"], 64)
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(time.Duration(seconds * float64(time.Second))):
		return nil
	}
}

// The token usage, as Google's ADK writes it, if it is wanted in this place: task (the default), artifact
// or message.
func (m marks) usage(place string) map[string]any {
	wanted, has := m.values["usage"]
	if !has || wanted != place && (wanted != "" || place != "task") {
		return nil
	}
	counts := map[string]any{"promptTokenCount": 1200, "candidatesTokenCount": 34, "totalTokenCount": 1234}
	return map[string]any{"adk_usage_metadata": counts}
}

// The answer in three pieces, or in one.
func (m marks) chunks() []string {
	if !m.has("chunks") {
		return []string{m.answer}
	}
	var chunks []string
	third := len(m.answer)/3 + 1
	for rest := m.answer; rest != ""; {
		size := min(third, len(rest))
		chunks = append(chunks, rest[:size])
		rest = rest[size:]
	}
	return chunks
}

// A run is one of the executor, with how it ended.
type run struct {
	MessageID string  `json:"messageId"`
	ContextID string  `json:"contextId"`
	TaskID    string  `json:"taskId"`
	End       *string `json:"end"`
}

type executor struct {
	mutex sync.Mutex
	runs  []*run
}

func (e *executor) Execute(ctx context.Context, task *a2asrv.ExecutorContext) iter.Seq2[a2a.Event, error] {
	return func(yield func(a2a.Event, error) bool) {
		noted := &run{MessageID: task.Message.ID, ContextID: task.ContextID, TaskID: string(task.TaskID)}
		e.mutex.Lock()
		e.runs = append(e.runs, noted)
		e.mutex.Unlock()
		end := "done"
		if err := answer(ctx, task, yield); err != nil {
			end = "raised"
			if ctx.Err() != nil {
				end = "cancelled"
			}
			yield(nil, err)
		}
		e.mutex.Lock()
		noted.End = &end
		e.mutex.Unlock()
	}
}

func (e *executor) Cancel(_ context.Context, task *a2asrv.ExecutorContext) iter.Seq2[a2a.Event, error] {
	return func(yield func(a2a.Event, error) bool) {
		yield(a2a.NewStatusUpdateEvent(task, a2a.TaskStateCanceled, nil), nil)
	}
}

var errStopped = errors.New("nobody takes more events")

func answer(ctx context.Context, task *a2asrv.ExecutorContext, yield func(a2a.Event, error) bool) error {
	m := read(task.Message)
	if m.has("early") {
		return errors.New("the model is not there")
	}
	say := func(words string) *a2a.Message {
		message := a2a.NewMessageForTask(a2a.MessageRoleAgent, task, a2a.NewTextPart(words))
		message.Metadata = m.usage("message")
		return message
	}
	if m.has("message") {
		if err := m.wait(ctx); err != nil {
			return err
		}
		message := a2a.NewMessage(a2a.MessageRoleAgent, a2a.NewTextPart(m.answer))
		message.ID, message.ContextID = "answer-to-"+task.Message.ID, task.ContextID
		message.Metadata = m.usage("message")
		if message.Metadata == nil {
			message.Metadata = m.usage("task")
		}
		yield(message, nil)
		return nil
	}
	if task.StoredTask == nil && !yield(a2a.NewSubmittedTask(task, task.Message), nil) {
		return errStopped
	}
	status := func(state a2a.TaskState, message *a2a.Message) error {
		event := a2a.NewStatusUpdateEvent(task, state, message)
		if state != a2a.TaskStateWorking {
			event.Metadata = m.usage("task")
		}
		if !yield(event, nil) {
			return errStopped
		}
		return nil
	}
	if !m.has("reject") {
		if err := status(a2a.TaskStateWorking, nil); err != nil {
			return err
		}
		if err := m.wait(ctx); err != nil {
			return err
		}
	}
	if m.has("fail") {
		return errors.New("the model gave up")
	}
	for _, end := range ends {
		if m.has(end.mark) {
			return status(end.state, say(end.words))
		}
	}
	if m.has("status") {
		return status(a2a.TaskStateCompleted, say(m.answer))
	}
	chunks := m.chunks()
	for at, chunk := range chunks {
		event := a2a.NewArtifactUpdateEvent(task, "answer", a2a.NewTextPart(chunk))
		event.Append, event.LastChunk = at > 0, at == len(chunks)-1
		event.Artifact.Name = "answer"
		event.Artifact.Metadata = m.usage("artifact")
		if !yield(event, nil) {
			return errStopped
		}
	}
	return status(a2a.TaskStateCompleted, nil)
}

// A sighting is one POST that came.
type sighting struct {
	Path    string            `json:"path"`
	Headers map[string]string `json:"headers"`
	Body    any               `json:"body"`
	Status  *int              `json:"status"`
}

// The door stands before the library's handler: it notes every POST, asks for credentials and tells what it
// noted.
type door struct {
	next     http.Handler
	executor *executor
	token    string
	header   string
	mutex    sync.Mutex
	seen     []*sighting
}

func (d *door) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/seen":
		d.mutex.Lock()
		defer d.mutex.Unlock()
		write(w, http.StatusOK, append([]*sighting{}, d.seen...))
	case r.URL.Path == "/runs":
		d.executor.mutex.Lock()
		defer d.executor.mutex.Unlock()
		write(w, http.StatusOK, append([]*run{}, d.executor.runs...))
	case r.Method != http.MethodPost:
		d.next.ServeHTTP(w, r)
	default:
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		noted := &sighting{Path: r.URL.Path, Headers: map[string]string{"host": r.Host}}
		for name, values := range r.Header {
			noted.Headers[strings.ToLower(name)] = strings.Join(values, ", ")
		}
		// What is no JSON is noted as null.
		_ = json.Unmarshal(body, &noted.Body)
		d.mutex.Lock()
		d.seen = append(d.seen, noted)
		d.mutex.Unlock()
		watched := &writer{ResponseWriter: w, wrote: func(status int) {
			d.mutex.Lock()
			defer d.mutex.Unlock()
			if noted.Status == nil {
				noted.Status = &status
			}
		}}
		if !d.mayPass(r) {
			w.Header().Set("WWW-Authenticate", "Bearer")
			write(watched, http.StatusUnauthorized, map[string]string{"detail": "Not authenticated"})
			return
		}
		d.next.ServeHTTP(watched, r)
	}
}

func (d *door) mayPass(r *http.Request) bool {
	if d.token != "" && r.Header.Get("Authorization") != "Bearer "+d.token {
		return false
	}
	name, value, has := strings.Cut(d.header, "=")
	return !has || r.Header.Get(name) == value
}

// A writer tells the status it is told.
type writer struct {
	http.ResponseWriter
	wrote func(int)
}

func (w *writer) WriteHeader(status int) {
	w.wrote(status)
	w.ResponseWriter.WriteHeader(status)
}

func (w *writer) Write(bytes []byte) (int, error) {
	w.wrote(http.StatusOK)
	return w.ResponseWriter.Write(bytes)
}

// Flush is what the library asks for before it streams.
func (w *writer) Flush() {
	if flusher, can := w.ResponseWriter.(http.Flusher); can {
		flusher.Flush()
	}
}

func write(w http.ResponseWriter, status int, value any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(value)
}

// Who came with the token has a name. Without one the library's store keeps tasks but lists none.
type named struct {
	a2asrv.PassthroughCallInterceptor
}

func (named) Before(ctx context.Context, call *a2asrv.CallContext, _ *a2asrv.Request) (context.Context, any, error) {
	call.User = a2asrv.NewAuthenticatedUser("operator", nil)
	return ctx, nil, nil
}

func main() {
	port := flag.Int("port", 0, "0 chooses one")
	token := flag.String("token", "", "ask for this bearer token")
	header := flag.String("header", "", "ask for this header, NAME=VALUE")
	cert := flag.String("cert", "", "serve https with this certificate")
	key := flag.String("key", "", "the certificate's key")
	noStreaming := flag.Bool("no-streaming", false, "say so in the card")
	compat := flag.Bool("compat", false, "answer the older dialect too")
	flag.Parse()

	listener, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", *port))
	if err != nil {
		log.Fatal(err)
	}
	scheme := "http"
	if *cert != "" {
		scheme = "https"
	}
	url := fmt.Sprintf("%s://%s", scheme, listener.Addr())

	card := &a2a.AgentCard{
		Name:                "Investigator",
		Description:         "Looks into what a cluster reports.",
		Version:             "1.2.3",
		SupportedInterfaces: []*a2a.AgentInterface{a2a.NewAgentInterface(url+path, a2a.TransportProtocolJSONRPC)},
		DefaultInputModes:   []string{"text/plain"},
		DefaultOutputModes:  []string{"text/plain"},
		Capabilities:        a2a.AgentCapabilities{Streaming: !*noStreaming},
		Skills: []a2a.AgentSkill{
			{ID: "investigate", Name: "Investigate", Description: "Finds causes.", Tags: []string{"kubernetes"}},
		},
	}
	needed := a2a.SecurityRequirements{}
	card.SecuritySchemes = a2a.NamedSecuritySchemes{}
	if *token != "" {
		card.SecuritySchemes["token"] = a2a.HTTPAuthSecurityScheme{Scheme: "bearer"}
		needed["token"] = a2a.SecuritySchemeScopes{}
	}
	if *header != "" {
		name, _, _ := strings.Cut(*header, "=")
		location := a2a.APIKeySecuritySchemeLocationHeader
		card.SecuritySchemes["key"] = a2a.APIKeySecurityScheme{Location: location, Name: name}
		needed["key"] = a2a.SecuritySchemeScopes{}
	}
	if len(needed) > 0 {
		card.SecurityRequirements = a2a.SecurityRequirementsOptions{needed}
	}

	executor := &executor{}
	options := []a2asrv.RequestHandlerOption{a2asrv.WithCapabilityChecks(&card.Capabilities)}
	if *token != "" {
		options = append(options, a2asrv.WithCallInterceptors(named{}))
	}
	handler := a2asrv.NewHandler(executor, options...)
	mux := http.NewServeMux()
	mux.Handle(path, a2asrv.NewJSONRPCHandler(handler))
	if *compat {
		old := a2a.NewAgentInterface(url+pathOld, a2a.TransportProtocolJSONRPC)
		old.ProtocolVersion = a2av0.Version
		card.SupportedInterfaces = append(card.SupportedInterfaces, old)
		mux.Handle(pathOld, a2av0.NewJSONRPCHandler(handler))
		producer := a2av0.NewStaticAgentCardProducer(card)
		mux.Handle(a2asrv.WellKnownAgentCardPath, a2asrv.NewAgentCardHandler(producer))
	} else {
		mux.Handle(a2asrv.WellKnownAgentCardPath, a2asrv.NewStaticAgentCardHandler(card))
	}

	server := &http.Server{Handler: &door{next: mux, executor: executor, token: *token, header: *header}}
	fmt.Printf("listening on %s\n", url)
	if *cert != "" {
		log.Fatal(server.ServeTLS(listener, *cert, *key))
	}
	log.Fatal(server.Serve(listener))
}
