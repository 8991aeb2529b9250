//! `khook dashboard` serves the page from where a person sits, with their own rights.

use std::{
    net::{IpAddr, Ipv4Addr},
    process::ExitCode,
    sync::Arc,
};

use futures::{StreamExt as _, pin_mut};
use kube::runtime::{WatchStreamExt as _, reflector};
use tokio::signal;
use tokio_util::sync::CancellationToken;

use super::{
    Error,
    cluster::{Cluster, Connection},
    output::print,
};
use crate::{
    client,
    dashboard::{Dashboard, feed::Feed},
    hook::Hook,
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Hooks of all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// Port of the page; 0 takes any free one
    #[arg(long, default_value_t = 8090)]
    port: u16,
    /// Address to listen on. The page has no login: whoever reaches it sees what you may see
    #[arg(long, default_value_t = Ipv4Addr::LOCALHOST.into())]
    bind: IpAddr,
}

const WATCH: &str = "hooks";

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    let cluster = connection.connect().await?;
    let feed = Arc::new(Feed::new([WATCH.to_owned()]));
    let (hooks, writer) = reflector::store::<Hook>();
    let stop = CancellationToken::new();
    let dashboard = Dashboard::start(args.bind, args.port, hooks, &feed, stop.clone())
        .await
        .map_err(Error::because("no page"))?;

    let heard = feed.clone();
    let noting = client::noting(cluster.watch.clone(), move || heard.answered(WATCH));
    let watched = Cluster { watch: noting, ..cluster.clone() }.watch_hooks(args.all_namespaces);
    let watch = watched.reflect(writer);
    let watch = async {
        pin_mut!(watch);
        while let Some(item) = watch.next().await {
            feed.note(WATCH, &item);
            feed.changed();
        }
    };

    let place = if args.all_namespaces {
        "all namespaces".into()
    } else {
        format!("namespace {}", cluster.namespace)
    };
    if !args.bind.is_loopback() {
        eprintln!("warning: the page has no login, and whoever reaches {} sees it", dashboard.address);
    }
    print(&format!("The incidents of {place}: http://{}", dashboard.address))?;
    tokio::select! {
        () = watch => {}
        asked = signal::ctrl_c() => asked.map_err(Error::because("no way to hear of Ctrl-C"))?,
    }
    stop.cancel();
    dashboard.stopped().await;
    Ok(ExitCode::SUCCESS)
}
