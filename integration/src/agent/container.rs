//! A real `consul` in a container, where a Docker daemon answers and `LICTOR_CONSUL_IMAGE` names an image.

use std::{net::SocketAddr, time::Duration};

use anyhow::{Context, Result};
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _, runners::AsyncRunner as _};
use tokio::io::AsyncBufReadExt as _;

use super::{
    Options, Version,
    consul::{self, version_of},
};
use crate::{ports, wait};

/// An image with a `consul` in it.
#[derive(Clone, Debug)]
pub(crate) struct Image {
    /// `name:tag`, as it was given.
    pub(crate) name: String,
    pub(crate) version: Version,
    /// The first line of `consul version`.
    pub(crate) banner: String,
}

impl Image {
    /// The image that `LICTOR_CONSUL_IMAGE` names, which is run once to say its version.
    pub(crate) fn find() -> Result<Option<Self>> {
        let named = std::env::var("LICTOR_CONSUL_IMAGE").ok().filter(|image| !image.is_empty());
        let Some(name) = named else { return Ok(None) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let banner = runtime.block_on(async {
            // The first use of an image may have to bring it here.
            wait::within("the version of the image", Duration::from_secs(300), banner(&name)).await?
        });
        let banner =
            banner.with_context(|| format!("LICTOR_CONSUL_IMAGE={name}: no container of it says a version"))?;
        let version = version_of(&banner).with_context(|| format!("{name} does not say a version but {banner:?}"))?;
        Ok(Some(Self { name, version, banner }))
    }

    fn generic(&self) -> GenericImage {
        generic(&self.name)
    }
}

fn generic(name: &str) -> GenericImage {
    let (name, tag) = name.rsplit_once(':').unwrap_or((name, "latest"));
    GenericImage::new(name, tag)
}

async fn banner(name: &str) -> Result<String> {
    let container = generic(name).with_cmd(["version"]).start().await.context("cannot start a container")?;
    let mut line = String::new();
    container.stdout(true).read_line(&mut line).await.context("cannot read what it prints")?;
    Ok(line.trim().to_owned())
}

/// A container on the host's network, since the checks of the agent and the addresses in its catalog are loopback.
pub(crate) struct Running {
    api: SocketAddr,
    container: ContainerAsync<GenericImage>,
}

impl Running {
    pub(crate) async fn start(image: &Image, options: &Options) -> Result<Self> {
        let api = ports::free()?;
        let config = consul::config(options, image.version, api)?;
        let request = image.generic().with_network("host").with_cmd([
            "agent".to_owned(),
            "-dev".to_owned(),
            "-hcl".to_owned(),
            config.to_string(),
        ]);
        let container = request.start().await.with_context(|| format!("cannot start a container of {}", image.name))?;
        Ok(Self { api, container })
    }

    pub(crate) fn api(&self) -> SocketAddr {
        self.api
    }

    pub(crate) async fn stop(&self) -> Result<()> {
        Ok(self.container.stop_with_timeout(Some(0)).await?)
    }

    pub(crate) async fn start_again(&self) -> Result<()> {
        Ok(self.container.start().await?)
    }

    pub(crate) async fn pause(&self) -> Result<()> {
        Ok(self.container.pause().await?)
    }

    pub(crate) async fn unpause(&self) -> Result<()> {
        Ok(self.container.unpause().await?)
    }
}
