//! Every file of `examples/` is what a real apiserver takes.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use e2e::world::World;

#[tokio::test]
async fn every_example_can_be_applied() -> Result<()> {
    let world = World::new("examples").await?;
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples");
    let mut applied = 0;
    for folder in std::fs::read_dir(root)? {
        for file in std::fs::read_dir(folder?.path())? {
            let path = file?.path();
            let yaml = std::fs::read_to_string(&path)?;
            let namespace = world.control_plane.fresh_namespace("example").await?;
            let done = world.control_plane.apply_in(&namespace, &yaml).await;
            done.with_context(|| format!("applying {}", path.display()))?;
            applied += 1;
        }
    }
    ensure!(applied >= 3, "{applied} examples");
    Ok(())
}
