"""An agent on the Python A2A SDK 1.x, which speaks A2A 1.0, and 0.3 too with --compat. Marks in the prompt
say how it answers."""

import asyncio

from a2a.helpers.proto_helpers import new_task_from_user_message
from a2a.server.agent_execution import AgentExecutor
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.routes import create_agent_card_routes, create_jsonrpc_routes
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types.a2a_pb2 import (
    AgentCapabilities,
    AgentCard,
    AgentInterface,
    AgentSkill,
    APIKeySecurityScheme,
    HTTPAuthSecurityScheme,
    Message,
    Part,
    Role,
    SecurityRequirement,
    SecurityScheme,
    StringList,
    TaskState,
)
from starlette.applications import Starlette

from common import Marks, options, serve

PATH = "/a2a/v1"

STATES = {
    "failed": TaskState.TASK_STATE_FAILED,
    "ask": TaskState.TASK_STATE_INPUT_REQUIRED,
    "auth": TaskState.TASK_STATE_AUTH_REQUIRED,
    "reject": TaskState.TASK_STATE_REJECTED,
    "cancel": TaskState.TASK_STATE_CANCELED,
}


class Executor(AgentExecutor):
    def __init__(self, runs):
        self.runs = runs

    async def execute(self, context, event_queue):
        run = self.runs.begin(context.message.message_id, context.context_id, context.task_id)
        try:
            await self.answer(context, event_queue, Marks(context.get_user_input()))
            run["end"] = "done"
        except asyncio.CancelledError:
            run["end"] = "cancelled"
            raise
        except Exception:
            run["end"] = "raised"
            raise

    async def answer(self, context, queue, marks):
        if "early" in marks:
            raise RuntimeError("the model is not there")
        if "message" in marks:
            await asyncio.sleep(marks.delay)
            return await queue.enqueue_event(
                Message(
                    role=Role.ROLE_AGENT,
                    message_id=f"answer-to-{context.message.message_id}",
                    context_id=context.context_id,
                    parts=[Part(text=marks.answer)],
                    metadata=marks.usage("message") or marks.usage("task"),
                )
            )
        task = context.current_task
        if task is None:
            task = new_task_from_user_message(context.message)
            await queue.enqueue_event(task)
        updater = TaskUpdater(queue, task.id, task.context_id)
        say = lambda words: updater.new_agent_message([Part(text=words)], metadata=marks.usage("message"))
        if "reject" not in marks:
            await updater.start_work()
            await asyncio.sleep(marks.delay)
        if "fail" in marks:
            raise RuntimeError("the model gave up")
        for mark, state in STATES.items():
            if mark in marks:
                return await updater.update_status(
                    state, message=say(marks.words), metadata=marks.usage("task")
                )
        message = None
        if "status" in marks:
            message = say(marks.answer)
        else:
            chunks = marks.chunks()
            for at, chunk in enumerate(chunks):
                await updater.add_artifact(
                    [Part(text=chunk)],
                    artifact_id="answer",
                    name="answer",
                    metadata=marks.usage("artifact"),
                    append=at > 0,
                    last_chunk=at == len(chunks) - 1,
                )
        await updater.update_status(
            TaskState.TASK_STATE_COMPLETED, message=message, metadata=marks.usage("task")
        )

    async def cancel(self, context, event_queue):
        await TaskUpdater(event_queue, context.task_id, context.context_id).cancel()


def card(url, options):
    schemes, needed = {}, {}
    if options.token is not None:
        http = HTTPAuthSecurityScheme(scheme="bearer")
        schemes["token"] = SecurityScheme(http_auth_security_scheme=http)
        needed["token"] = StringList()
    if options.header is not None:
        key = APIKeySecurityScheme(location="header", name=options.header.partition("=")[0])
        schemes["key"] = SecurityScheme(api_key_security_scheme=key)
        needed["key"] = StringList()
    versions = ["1.0", "0.3"] if options.compat else ["1.0"]
    return AgentCard(
        name="Investigator",
        description="Looks into what a cluster reports.",
        version="1.2.3",
        supported_interfaces=[
            AgentInterface(url=f"{url}{PATH}", protocol_binding="JSONRPC", protocol_version=version)
            for version in versions
        ],
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        capabilities=AgentCapabilities(streaming=not options.no_streaming),
        skills=[
            AgentSkill(id="investigate", name="Investigate", description="Finds causes.", tags=["kubernetes"])
        ],
        security_schemes=schemes,
        security_requirements=[SecurityRequirement(schemes=needed)] if needed else [],
    )


def main():
    given = options()

    def make(url, runs):
        shown = card(url, given)
        handler = DefaultRequestHandler(
            agent_executor=Executor(runs), task_store=InMemoryTaskStore(), agent_card=shown
        )
        rpc = create_jsonrpc_routes(handler, PATH, enable_v0_3_compat=given.compat)
        return Starlette(routes=[*create_agent_card_routes(shown), *rpc])

    serve(given, make)


if __name__ == "__main__":
    main()
