//! The API is what the page shows, for programs: read-only JSON, and a stream of the same objects.
//!
//! `docs/openapi.json` describes it; a test fails when it does not.

use axum::{
    Json, Router,
    body::Bytes,
    extract::{Query, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use schemars::{JsonSchema, SchemaGenerator, generate::SchemaSettings};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{
    Shared,
    board::{Board, Changes, Item, Reader},
    feed,
};
use crate::{
    hook::Phase,
    view::{AgentView, HookView, Incident},
};

/// The description of the API.
const OPENAPI: &str = include_str!("../../docs/openapi.json");

/// A list of what is shown.
#[derive(Serialize, JsonSchema)]
struct List<'a, T> {
    items: Vec<&'a T>,
    /// How well these are known.
    state: &'a feed::State,
}

/// Which incidents are wanted; all by default.
#[derive(Deserialize)]
struct Wanted {
    namespace: Option<String>,
    hook: Option<String>,
    phase: Option<Phase>,
}

/// Something that was taken away.
#[derive(Serialize, JsonSchema)]
struct Gone<'a> {
    /// incident, hook or agent.
    kind: &'a str,
    /// Its name among those of its kind.
    key: &'a str,
}

/// Something that is shown, with its name.
#[derive(Serialize, JsonSchema)]
struct Named<'a> {
    /// Its name among those of its kind.
    key: String,
    #[serde(flatten)]
    item: &'a Item,
}

/// Everything: what a reader knew before is forgotten. The first event of every stream.
#[derive(Serialize, JsonSchema)]
struct Snapshot<'a> {
    items: Vec<Named<'a>>,
    state: &'a feed::State,
}

/// What is asked for is not understood.
#[derive(Serialize, JsonSchema)]
struct Problem {
    /// Why, and what to do.
    error: String,
}

/// The routes of the API.
pub fn routes() -> Router<Shared> {
    Router::new()
        .route("/api/v1/hooks", get(hooks))
        .route("/api/v1/incidents", get(incidents))
        .route("/api/v1/agents", get(agents))
        .route("/api/v1/stream", get(stream))
        .route(
            "/api/v1/openapi.json",
            get(|| async { ([(header::CONTENT_TYPE, "application/json")], OPENAPI) }),
        )
}

async fn hooks(State(shared): State<Shared>) -> Response {
    let board = shared.hub.board();
    Json(List { items: board.hooks().collect(), state: &board.state }).into_response()
}

async fn agents(State(shared): State<Shared>) -> Response {
    let board = shared.hub.board();
    Json(List { items: board.agents().collect(), state: &board.state }).into_response()
}

async fn incidents(
    State(shared): State<Shared>,
    wanted: Result<Query<Wanted>, axum::extract::rejection::QueryRejection>,
) -> Response {
    let Query(wanted) = match wanted {
        Ok(wanted) => wanted,
        Err(_) => {
            let phases = Phase::ALL.map(Phase::as_str).join(", ");
            let error =
                format!("namespace, hook and phase may be given, each once; a phase is one of {phases}");
            return refusal(StatusCode::BAD_REQUEST, &error);
        }
    };
    let board = shared.hub.board();
    let is = |wanted: &Option<String>, is: &str| wanted.as_deref().is_none_or(|wanted| wanted == is);
    let items = board.incidents().filter(|incident| {
        is(&wanted.namespace, &incident.namespace)
            && is(&wanted.hook, &incident.hook)
            && wanted.phase.is_none_or(|phase| phase == incident.phase)
    });
    Json(List { items: items.collect(), state: &board.state }).into_response()
}

async fn stream(State(shared): State<Shared>, line: super::serve::Line) -> Response {
    shared.stream(Reader::Api, None, line)
}

/// The event of a whole board.
pub fn snapshot(board: &Board) -> Bytes {
    let items = board.items.iter().map(|((_, key), item)| Named { key: key.clone(), item });
    let mut text = String::new();
    event(&mut text, "snapshot", &board.version, &Snapshot { items: items.collect(), state: &board.state });
    text.into()
}

/// The events of changes.
pub fn changes(changes: &Changes) -> Bytes {
    let (mut text, version) = (String::new(), &changes.board.version);
    for (kind, key) in &changes.gone {
        event(&mut text, "remove", version, &Gone { kind, key });
    }
    for item in &changes.new {
        event(&mut text, "upsert", version, &Named { key: item.id().1, item });
    }
    event(&mut text, "state", version, &changes.board.state);
    text.into()
}

/// Adds a server-sent event. JSON has no line breaks of its own, so nothing in an object can end an event.
pub fn event(text: &mut String, name: &str, id: &str, data: &impl Serialize) {
    // These types have text as keys and no numbers that JSON lacks.
    let data = serde_json::to_string(data).unwrap_or_default();
    text.push_str(&format!("event: {name}\nid: {id}\ndata: {data}\n\n"));
}

/// What describes the API.
pub fn openapi() -> Value {
    let settings = SchemaSettings::draft2020_12().for_serialize().with(|settings| {
        settings.definitions_path = "/components/schemas".into();
        settings.meta_schema = None;
    });
    let mut schemas = settings.into_generator();
    let answer = |description: &str, schema: Value| json!({"description": description, "content": {"application/json": {"schema": schema}}});
    let query = |name: &str, description: &str, schema: Value| json!({"name": name, "in": "query", "required": false, "description": description, "schema": schema});
    fn list<T: JsonSchema>(schemas: &mut SchemaGenerator) -> Value {
        let (item, state) = (schemas.subschema_for::<T>(), schemas.subschema_for::<feed::State>());
        json!({
            "type": "object", "required": ["items", "state"],
            "properties": {"items": {"type": "array", "items": item}, "state": state},
        })
    }
    let (hooks, incidents) = (list::<HookView>(&mut schemas), list::<Incident>(&mut schemas));
    let agents = list::<AgentView>(&mut schemas);
    let phase = json!(schemas.subschema_for::<Phase>());
    let problem = json!(schemas.subschema_for::<Problem>());
    let events = json!({
        "snapshot": schemas.subschema_for::<Snapshot>(),
        "upsert": schemas.subschema_for::<Named>(),
        "remove": schemas.subschema_for::<Gone>(),
        "state": schemas.subschema_for::<feed::State>(),
    });
    let get = |id: &str, summary: &str, parameters: Value, responses: Value| json!({"get": {"operationId": id, "summary": summary, "parameters": parameters, "responses": responses}});
    let none = json!([]);
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "khook",
            "version": "v1",
            "summary": "Hooks, their incidents and their agents, to be read",
            "description": "Read-only: GET and HEAD. It has no login of its own. Texts come from the cluster and from agents: they are data, not to be trusted. Fields may be added.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": {
            "/api/v1/hooks": get("hooks", "Hooks, with what they cost", none.clone(), json!({
                "200": answer("The Hooks, by namespace and name", hooks),
            })),
            "/api/v1/incidents": get("incidents", "Incidents that are remembered", json!([
                query("namespace", "Only those of Hooks in this namespace", json!({"type": "string"})),
                query("hook", "Only those of Hooks of this name", json!({"type": "string"})),
                query("phase", "Only those in this phase", phase),
            ]), json!({
                "200": answer("The incidents, by namespace, Hook and id", incidents),
                "400": answer("The query is not understood", problem.clone()),
            })),
            "/api/v1/agents": get("agents", "Agents, by what the remembered incidents tell of them", none.clone(), json!({
                "200": answer("The agents, by name", agents),
            })),
            "/api/v1/stream": get("stream", "The same objects as they change", none, json!({
                "200": {
                    "description": "Server-sent events whose data is JSON. snapshot is the first of every stream, and says everything: what was known before is to be forgotten. Then upsert and remove, by kind and key, and state. beat comes every 15 seconds. A reader that is too slow is let go, and begins anew with a snapshot.",
                    "content": {"text/event-stream": {"schema": {"type": "string"}, "x-events": events}},
                },
                "503": answer("Too many read the stream already", problem),
            })),
        },
        "components": {"schemas": schemas.take_definitions(true)},
    })
}

/// An answer that says why there is no stream.
pub fn refusal(status: StatusCode, error: &str) -> Response {
    (status, Json(Problem { error: error.to_owned() })).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `UPDATE_DOCS=1` writes it anew.
    #[test]
    fn the_description_in_docs_is_of_this_api() {
        let text = serde_json::to_string_pretty(&openapi()).unwrap() + "\n";
        if std::env::var_os("UPDATE_DOCS").is_some() {
            let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
            std::fs::write(path, &text).unwrap();
            return;
        }
        assert!(
            text == OPENAPI,
            "docs/openapi.json is out of date: run `UPDATE_DOCS=1 cargo test -p khook --lib api`"
        );
    }
}
