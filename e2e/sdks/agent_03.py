"""An agent on the Python A2A SDK 0.3, which speaks A2A 0.3. Marks in the prompt say how it answers."""

import asyncio

from a2a.server.agent_execution import AgentExecutor
from a2a.server.apps import A2AStarletteApplication
from a2a.server.request_handlers import DefaultRequestHandler
from a2a.server.tasks import InMemoryTaskStore, TaskUpdater
from a2a.types import (
    AgentCapabilities,
    AgentCard,
    AgentSkill,
    APIKeySecurityScheme,
    HTTPAuthSecurityScheme,
    In,
    Message,
    Part,
    Role,
    TaskState,
    TextPart,
)
from a2a.utils import new_task

from common import Marks, options, serve

STATES = {
    "failed": TaskState.failed,
    "ask": TaskState.input_required,
    "auth": TaskState.auth_required,
    "reject": TaskState.rejected,
    "cancel": TaskState.canceled,
}


class Executor(AgentExecutor):
    def __init__(self, runs):
        self.runs = runs

    async def execute(self, context, queue):
        run = self.runs.begin(context.message.message_id, context.context_id, context.task_id)
        try:
            await self.answer(context, queue, Marks(context.get_user_input()))
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
                    role=Role.agent,
                    message_id=f"answer-to-{context.message.message_id}",
                    context_id=context.context_id,
                    parts=[text(marks.answer)],
                    metadata=marks.usage("message") or marks.usage("task"),
                )
            )
        task = context.current_task
        if task is None:
            task = new_task(context.message)
            await queue.enqueue_event(task)
        updater = TaskUpdater(queue, task.id, task.context_id)
        say = lambda words: updater.new_agent_message([text(words)], metadata=marks.usage("message"))
        if "reject" not in marks:
            await updater.start_work()
            await asyncio.sleep(marks.delay)
        if "fail" in marks:
            raise RuntimeError("the model gave up")
        for mark, state in STATES.items():
            if mark in marks:
                return await updater.update_status(
                    state,
                    message=say(marks.words),
                    # No more comes after it, also where the SDK would wait for more.
                    final=True,
                    metadata=marks.usage("task"),
                )
        message = None
        if "status" in marks:
            message = say(marks.answer)
        else:
            chunks = marks.chunks()
            for at, chunk in enumerate(chunks):
                await updater.add_artifact(
                    [text(chunk)],
                    artifact_id="answer",
                    name="answer",
                    metadata=marks.usage("artifact"),
                    append=at > 0 if len(chunks) > 1 else None,
                    last_chunk=at == len(chunks) - 1 if len(chunks) > 1 else None,
                )
        await updater.update_status(
            TaskState.completed, message=message, final=True, metadata=marks.usage("task")
        )

    async def cancel(self, context, queue):
        updater = TaskUpdater(queue, context.task_id, context.context_id)
        await updater.cancel()


def text(words):
    return Part(root=TextPart(text=words))


def card(url, options):
    schemes, security = {}, {}
    if options.token is not None:
        schemes["token"] = HTTPAuthSecurityScheme(scheme="bearer")
        security["token"] = []
    if options.header is not None:
        schemes["key"] = APIKeySecurityScheme(in_=In.header, name=options.header.partition("=")[0])
        security["key"] = []
    return AgentCard(
        name="Investigator",
        description="Looks into what a cluster reports.",
        url=f"{url}/",
        version="1.2.3",
        default_input_modes=["text/plain"],
        default_output_modes=["text/plain"],
        capabilities=AgentCapabilities(streaming=not options.no_streaming),
        skills=[
            AgentSkill(id="investigate", name="Investigate", description="Finds causes.", tags=["kubernetes"])
        ],
        security_schemes=schemes or None,
        security=[security] if security else None,
    )


def main():
    given = options()

    def make(url, runs):
        handler = DefaultRequestHandler(agent_executor=Executor(runs), task_store=InMemoryTaskStore())
        return A2AStarletteApplication(agent_card=card(url, given), http_handler=handler).build()

    serve(given, make)


if __name__ == "__main__":
    main()
