//! A real `consul` in a container, where a Docker daemon answers and `LICTOR_CONSUL_IMAGE` names an image.

use std::net::SocketAddr;

use anyhow::{Context, Result};
use testcontainers::{ContainerAsync, GenericImage, ImageExt as _, runners::AsyncRunner as _};

use super::{Options, Version, consul};
use crate::ports;

/// The image that the environment names, `name:tag`.
pub(crate) fn image_from_environment() -> Option<String> {
    std::env::var("LICTOR_CONSUL_IMAGE").ok().filter(|image| !image.is_empty())
}

/// A container on the host's network, since the checks of the agent and the addresses in its catalog are loopback.
pub(crate) struct Running {
    api: SocketAddr,
    container: ContainerAsync<GenericImage>,
}

impl Running {
    pub(crate) async fn start(image: &str, options: &Options) -> Result<Self> {
        let (name, tag) = image.rsplit_once(':').unwrap_or((image, "latest"));
        let version = version(tag);
        let api = ports::free()?;
        let config = consul::config(options, version, api)?;
        let image = GenericImage::new(name, tag).with_network("host").with_cmd([
            "agent".to_owned(),
            "-dev".to_owned(),
            "-hcl".to_owned(),
            config.to_string(),
        ]);
        let container = image.start().await.with_context(|| format!("cannot start a container of {name}:{tag}"))?;
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

/// What the tag says, or today's.
pub(crate) fn version(tag: &str) -> Version {
    let mut parts = tag.split('.').map(|part| part.parse().ok());
    match (parts.next().flatten(), parts.next().flatten()) {
        (Some(major), Some(minor)) => Version(major, minor),
        _ => Version(1, 22),
    }
}
