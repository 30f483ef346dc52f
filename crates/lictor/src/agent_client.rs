//! The client of the agent, put together from the settings: address, token, and for HTTPS the TLS backend.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use lictor_core::{
    AgentTls, TlsBackend,
    consul::{AgentClient, BasicAuth, ClientSettings, Endpoint, HttpTransport, Token},
    tls::AgentVerification,
    transport::Transport,
};
use lictor_proxy::agent_tls::TlsTransport;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _};

use crate::{
    config::{Problem, values::Secret},
    exit::{Exit, Failure},
    settings::AgentSettings,
};

/// The most certificates that are taken from CA files together: more than any system's own set.
const MAX_ROOTS: usize = 4096;

/// Where systems keep the certificates of public authorities, one bundle a system.
const SYSTEM_BUNDLES: [&str; 5] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/pki/ca-trust/extracted/pem/tls-ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// Makes the client. It connects when it is first used.
///
/// # Errors
/// [`Failure`] when a file cannot be read or used.
pub(crate) fn client(
    settings: &AgentSettings,
    backend: &Arc<dyn TlsBackend>,
    services: usize,
) -> Result<AgentClient, Failure> {
    let address = &settings.address;
    let token = match (&settings.token_file, &settings.token) {
        (Some(path), _) => Token::file(path.clone()),
        (None, Some(Secret(token))) => Token::value(token),
        (None, None) => Ok(Token::none()),
    }
    .map_err(|error| Problem::new(error.to_string()).instead("check -token-file or CONSUL_HTTP_TOKEN_FILE"))?;
    let basic_auth = match &settings.auth {
        Some(Secret(text)) => Some(
            BasicAuth::parse(text)
                .map_err(|error| Problem::new(error.to_string()).instead("check CONSUL_HTTP_AUTH, user:password"))?,
        ),
        None => None,
    };
    let transport: Arc<dyn Transport> = match address.endpoint() {
        Endpoint::Https(authority) => {
            let context = backend.agent_context(&tls(settings)?).map_err(|error| {
                Failure::new(Exit::Config, format!("HTTPS to the agent at {address} cannot be set up: {error}"))
            })?;
            let transport =
                TlsTransport::new(context, &authority.host, authority.port, settings.server_name.as_deref());
            Arc::new(transport.map_err(|error| Problem::new(error.to_string()))?)
        }
        _ => Arc::new(HttpTransport::new(address).map_err(|error| Problem::new(error.to_string()))?),
    };
    Ok(AgentClient::new(
        transport,
        ClientSettings {
            token,
            basic_auth,
            path_prefix: address.prefix().to_owned(),
            namespace: settings.namespace.clone(),
            partition: settings.partition.clone(),
            services,
        },
    ))
}

/// Reads the files that HTTPS to the agent needs.
fn tls(settings: &AgentSettings) -> Result<AgentTls, Problem> {
    let mut roots = Vec::new();
    if settings.verify {
        if let Some(path) = &settings.ca_file {
            roots.extend(certificates(path)?);
        }
        if let Some(path) = &settings.ca_path {
            roots.extend(directory(path)?);
        }
        if settings.ca_file.is_none() && settings.ca_path.is_none() {
            roots = system_roots()?;
        }
        if roots.len() > MAX_ROOTS {
            return Err(Problem::new(format!("more than {MAX_ROOTS} authorities for the agent"))
                .instead("name the one that issued its certificate with -ca-file"));
        }
    }
    let client = match &settings.client {
        Some((certificate, key)) => Some((certificates(certificate)?, private_key(key)?)),
        None => None,
    };
    let verification = if settings.verify { AgentVerification::Full } else { AgentVerification::Off };
    Ok(AgentTls { roots, client, verification })
}

/// All certificates of a PEM file; none at all is an error.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let wrong = |what: String| {
        Problem::new(format!("{}: {what}", path.display())).instead("it must be a readable PEM file with certificates")
    };
    let all = CertificateDer::pem_file_iter(path)
        .and_then(|items| items.collect::<Result<Vec<_>, _>>())
        .map_err(|error| wrong(error.to_string()))?;
    if all.is_empty() { Err(wrong("there is no certificate in it".to_owned())) } else { Ok(all) }
}

/// The certificates of all files of a directory. Files without one are passed over, as Go does.
fn directory(path: &Path) -> Result<Vec<CertificateDer<'static>>, Problem> {
    let unreadable = |error: std::io::Error| {
        Problem::new(format!("{}: {error}", path.display())).instead("it must be a readable directory of PEM files")
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(unreadable)? {
        files.push(entry.map_err(unreadable)?.path());
    }
    files.sort();
    let all: Vec<_> = files.iter().filter_map(|file| certificates(file).ok()).flatten().collect();
    if all.is_empty() {
        return Err(Problem::new(format!("{}: no file in it holds a certificate", path.display()))
            .instead("put the CA's PEM file there, or name it with -ca-file"));
    }
    Ok(all)
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, Problem> {
    PrivateKeyDer::from_pem_file(path).map_err(|error| {
        Problem::new(format!("{}: {error}", path.display()))
            .instead("it must be a readable PEM file with a private key")
    })
}

/// The system's own authorities.
fn system_roots() -> Result<Vec<CertificateDer<'static>>, Problem> {
    let named = std::env::var_os("SSL_CERT_FILE").filter(|path| !path.is_empty()).map(PathBuf::from);
    let found = match named {
        Some(path) => Some(path),
        None => SYSTEM_BUNDLES.iter().map(PathBuf::from).find(|path| path.exists()),
    };
    match found {
        Some(path) => certificates(&path),
        None => Err(Problem::new("this system has no list of certificate authorities to verify the agent by")
            .instead("name the CA of the agent with -ca-file or CONSUL_CACERT")),
    }
}
