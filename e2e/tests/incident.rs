//! From an Event to an agent's answer, on a real control plane.

use anyhow::Result;
use e2e::world::World;
use khook::hook::Phase;

#[tokio::test]
async fn an_event_becomes_one_call_an_answer_and_is_resolved_after_quiet() -> Result<()> {
    let world = World::new("incident").await?;
    let operator = world.operator().await?;
    world.hook("shop", &["pod-restart"]).await?;
    world.crash("web-0").await?;
    world.wait_for("shop", "web-0", Phase::Notified).await?;
    world.wait_answered("shop", "web-0").await?;
    world.wait_for("shop", "web-0", Phase::Resolved).await?;
    println!(
        "{}",
        world.control_plane.table("kagent.dev/v1alpha2/hooks", Some(&world.namespace), true).await?
    );
    println!("{:#?}", world.notices("shop").await?);
    println!("{}", world.agent.messages()[0].text);
    world.ensure_each_once(1)?;
    println!("{}", operator.log());
    Ok(())
}
