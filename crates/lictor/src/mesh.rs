//! Joins the parts: the agent's client, certificates, authorizer, discovery and registration on one side, the data
//! plane on the other. Only here do they meet.

use std::{
    future::Future,
    net::SocketAddr,
    sync::{
        Arc, Mutex, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use lictor_core::{
    CertSource, Crypto, ServiceName, TlsBackend,
    consul::{
        AgentClient, ConsulAuthorizer, ConsulCertSource, ConsulDiscovery, DefinitionSource, Endpoint, OwnDefinition,
        ProxyDefinition, Readiness, Registration, RegistrationSettings, SidecarError, find_sidecar,
    },
    rotation::{OwnService, Rotation, system_clock},
};
use lictor_proxy::{Applied, BindError, Deps, Sidecar, SidecarConfig, Workers, limits::raise_descriptor_limit};
use tokio::{sync::watch, task::JoinHandle};
use tracing_appender::non_blocking::ErrorCounter;

use crate::{
    admin::{self, Ready, Status as _},
    agent_client,
    cli::ProxyFlags,
    crypto, definition,
    env::Environment,
    exit::{Exit, Failure},
    logging::Logging,
    records::Records,
    settings::{Admin, DEFAULT_ADMIN, Mode, Registering, Settings},
    status::{Running, Status},
};

/// How often readiness is looked at. It depends on the clock too: certificates expire.
const LOOK: Duration = Duration::from_millis(200);

/// What all sidecars of the process share: runtimes, TLS library, log.
pub(crate) struct Process {
    /// Agent client, admin and metrics. Data has threads of its own, so that neither starves the other.
    /// There until the process ends.
    control: Option<tokio::runtime::Runtime>,
    workers: Arc<Workers>,
    backend: Arc<dyn TlsBackend>,
    crypto: Arc<Crypto>,
    records: Records,
    log_lines_dropped: ErrorCounter,
}

impl Process {
    /// Raises the descriptor limit, starts the TLS library and the threads.
    ///
    /// # Errors
    /// [`Failure`] when one of them cannot be had.
    pub(crate) fn start(settings: &Settings, logging: &Logging) -> Result<Self, Failure> {
        let failed = |what: &str, why: &dyn std::fmt::Display| Failure::new(Exit::Failed, format!("{what}: {why}"));
        // Each connection takes two descriptors; the soft limit that most systems start with is there for programmes
        // that use select(2).
        let descriptors = raise_descriptor_limit();
        let (backend, crypto) = crypto::start(&settings.tls)?;
        // The first key costs the seeding of the random generator: better now than at the first handshake.
        drop(backend.generate_p256());
        let control = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("control")
            .enable_all()
            .build()
            .map_err(|why| failed("the control threads cannot be started", &why))?;
        let workers =
            Workers::start(Some(settings.workers)).map_err(|why| failed("the data threads cannot be started", &why))?;
        tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = settings.workers, descriptors, "lictor starts");
        crypto::log(&crypto, settings.tls.require_fips);
        Ok(Self {
            control: Some(control),
            workers: Arc::new(workers),
            backend,
            crypto: Arc::new(crypto),
            records: logging.records(),
            log_lines_dropped: logging.dropped(),
        })
    }

    /// The TLS library.
    #[cfg(feature = "dev")]
    pub(crate) fn backend(&self) -> Arc<dyn TlsBackend> {
        Arc::clone(&self.backend)
    }

    /// What the TLS library is and does.
    #[cfg(feature = "dev")]
    pub(crate) fn crypto(&self) -> &Crypto {
        &self.crypto
    }

    /// Runs `work` on the control threads.
    pub(crate) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        match &self.control {
            Some(control) => control.block_on(work),
            None => unreachable!("the runtime is taken away by drop alone"),
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // A file or a lookup that hangs must not hold up the end.
        if let Some(control) = self.control.take() {
            control.shutdown_timeout(Duration::from_secs(1));
        }
    }
}

/// One sidecar and all that feeds it.
pub(crate) struct Mesh {
    status: Arc<Status>,
    settings: Arc<Settings>,
    ready: watch::Receiver<Ready>,
    registration: Option<Registration>,
    admin: Option<SocketAddr>,
    failure: watch::Receiver<Option<(Exit, String)>>,
    tasks: Vec<JoinHandle<()>>,
}

impl Mesh {
    /// Starts what the settings say. A sidecar whose registration is not there yet waits for it and is not ready.
    ///
    /// # Errors
    /// [`Failure`] when the lookup of the sidecar fails, or an address that the operator wrote cannot be had.
    pub(crate) async fn start(process: &Process, settings: Settings) -> Result<Self, Failure> {
        let client = agent_client::client(&settings.agent, &process.backend, 1)?;
        let id = match &settings.mode {
            Mode::Proxy { id, .. } => Some(id.clone()),
            Mode::SidecarFor { id } => Some(look_up(&client, id, &settings).await?),
            Mode::Static(_) => None,
        };
        let source = match &settings.mode {
            Mode::Proxy { managed: true, .. } => DefinitionSource::Managed,
            _ => DefinitionSource::Service,
        };
        let name = match (&settings.mode, &id) {
            (Mode::Static(sidecar), _) => sidecar.service.as_str().to_owned(),
            (_, id) => id.clone().unwrap_or_default(),
        };
        let status = Arc::new(Status {
            name,
            crypto: Arc::clone(&process.crypto),
            tls: settings.tls.clone(),
            client: client.clone(),
            records: process.records.clone(),
            log_lines_dropped: process.log_lines_dropped.clone(),
            definition: id.map(|id| OwnDefinition::start(&client, id, source)),
            notes: Mutex::default(),
            stopping: AtomicBool::new(false),
            running: OnceLock::new(),
        });
        let settings = Arc::new(settings);
        let mut tasks = Vec::new();
        let admin = serve_admin(settings.admin, &status, &mut tasks).await?;
        let (failed, failure) = watch::channel(None);
        let starter = Starter {
            status: Arc::clone(&status),
            settings: Arc::clone(&settings),
            workers: Arc::clone(&process.workers),
            backend: Arc::clone(&process.backend),
        };
        if let Mode::Static(sidecar) = &settings.mode {
            starter.start(sidecar.service.clone(), definition::of_static(sidecar, &settings), None).await?;
        } else {
            tasks.push(tokio::spawn(starter.follow(failed)));
        }
        let (tell, ready) = watch::channel(Ready::default());
        tasks.push(tokio::spawn(keep_looking(Arc::clone(&status), tell)));
        let registration = match &settings.mode {
            Mode::Static(sidecar) => sidecar.register.as_ref().map(|registering| {
                let (readiness, task) = readiness(ready.clone());
                tasks.push(task);
                Registration::start(client, registration_of(registering, &sidecar.service), readiness)
            }),
            _ => None,
        };
        Ok(Self { status, settings, ready, registration, admin, failure, tasks })
    }
}

impl Mesh {
    /// What the admin pages show.
    pub(crate) fn status(&self) -> Arc<Status> {
        Arc::clone(&self.status)
    }

    /// Where the admin listener is.
    pub(crate) fn admin_address(&self) -> Option<SocketAddr> {
        self.admin
    }

    /// Returns when the sidecar serves.
    pub(crate) async fn wait_ready(&self) {
        let mut ready = self.ready.clone();
        if ready.wait_for(|ready| ready.ready).await.is_err() {
            // The task that looks ends with the mesh.
            std::future::pending::<()>().await;
        }
    }

    /// Returns when the sidecar cannot go on.
    pub(crate) async fn failed(&self) -> Failure {
        let mut failure = self.failure.clone();
        let found = failure.wait_for(Option::is_some).await.map(|failure| failure.clone());
        match found {
            Ok(Some((exit, message))) => Failure::new(exit, message),
            _ => std::future::pending().await,
        }
    }

    /// Reads files again: the token, and what the configuration file says about listeners, upstreams and limits. One
    /// line of the log says what of it counts now and what waits for a restart.
    pub(crate) fn reload(&self, flags: &ProxyFlags) {
        let token = match self.status.client.reload_token() {
            Ok(true) => "another one is used from now on".to_owned(),
            Ok(false) => "unchanged".to_owned(),
            Err(error) => format!("the last one stays in use: {error}"),
        };
        let settings = match Settings::resolve(flags, &Environment::of_process()) {
            Ok(settings) => settings,
            Err(failure) => {
                tracing::error!(token, "the configuration is not taken over, the last one stays: {failure}");
                return;
            }
        };
        let needs_restart = self.settings.fixed_by_start(&settings);
        let taken_over = match (&settings.mode, self.status.running.get()) {
            (Mode::Static(sidecar), Some(running)) if *self.status.name == *sidecar.service.as_str() => {
                let applied = running.sidecar.apply(definition::of_static(sidecar, &settings));
                log_applied(&applied);
                if applied.failed.is_empty() {
                    "listeners, upstreams and limits"
                } else {
                    "a part, see the errors above"
                }
            }
            (Mode::Static(_), _) => "nothing: another service needs a restart",
            _ => "nothing: the registration says it all and is followed anyway",
        };
        tracing::info!(token, taken_over, ?needs_restart, "files were read again");
    }

    /// Deregisters, lets connections finish, and says how that went.
    pub(crate) async fn stop(mut self) -> Exit {
        let deadline = self.settings.drain;
        self.status.stopping.store(true, Ordering::Relaxed);
        if let Some(registration) = self.registration.take() {
            registration.stop().await;
            // Who asked the agent a moment ago may still come.
            tokio::time::sleep(self.settings.settle.min(deadline)).await;
        }
        let Some(running) = self.status.running.get() else { return Exit::Clean };
        let forced = running.sidecar.drain(deadline).await.forced;
        if forced == 0 {
            return Exit::Clean;
        }
        tracing::warn!(connections = forced, ?deadline, "connections had not finished by the deadline and were cut");
        Exit::Failed
    }
}

impl Drop for Mesh {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Starts the parts once the service is known, and keeps them in step with the registration.
struct Starter {
    status: Arc<Status>,
    settings: Arc<Settings>,
    workers: Arc<Workers>,
    backend: Arc<dyn TlsBackend>,
}

impl Starter {
    async fn start(
        &self,
        service: ServiceName,
        config: SidecarConfig,
        datacenter: Option<String>,
    ) -> Result<(), Failure> {
        let client = self.status.client.clone();
        let settings = &self.settings;
        let peer_policy = Arc::new(settings.peers.clone());
        let own = OwnService {
            name: service.clone(),
            namespace: settings.agent.namespace.clone(),
            partition: settings.agent.partition.clone(),
        };
        let backend = Arc::clone(&self.backend);
        let rotation = Rotation::new(
            own,
            Arc::clone(&backend),
            settings.tls.policy.clone(),
            Arc::clone(&peer_policy),
            system_clock(),
        );
        let source = Arc::new(ConsulCertSource::start(&client, Arc::new(rotation), system_clock()));
        if let Some(datacenter) = datacenter {
            source.expect_datacenter(datacenter);
        }
        let mut authorizer = ConsulAuthorizer::new(client.clone(), source.watch());
        if matches!(settings.mode, Mode::Proxy { managed: true, .. }) {
            authorizer = authorizer.of_managed_proxy();
        }
        let deps = Deps {
            certs: Arc::clone(&source) as Arc<dyn CertSource>,
            authorizer: Arc::new(authorizer),
            discovery: Arc::new(ConsulDiscovery::new(client)),
            backend,
            tls_policy: settings.tls.policy.clone(),
            peer_policy,
            workers: Arc::clone(&self.workers),
            control: tokio::runtime::Handle::current(),
        };
        let sidecar = Sidecar::start(deps, config).map_err(|error| not_bound(&error))?;
        // There is one starter and it starts once.
        let _ = self.status.running.set(Running { service: service.as_str().to_owned(), source, sidecar });
        Ok(())
    }

    /// Follows the registration until the task is cut.
    async fn follow(self, failed: watch::Sender<Option<(Exit, String)>>) {
        let Some(definition) = &self.status.definition else { return };
        let mut states = definition.watch();
        let mut last: Option<Arc<ProxyDefinition>> = None;
        loop {
            let newest = states.borrow_and_update().definition.clone();
            if let Some(definition) = newest
                && last.as_ref().is_none_or(|last| **last != *definition)
            {
                last = Some(Arc::clone(&definition));
                if let Err(failure) = self.take(definition).await {
                    failed.send_replace(Some((failure.exit, failure.to_string())));
                }
            }
            if states.changed().await.is_err() {
                return;
            }
        }
    }

    /// Takes over what the registration says now.
    async fn take(&self, definition: Arc<ProxyDefinition>) -> Result<(), Failure> {
        let service = match ServiceName::parse(&definition.service, self.settings.peers.grammar) {
            Ok(service) => service,
            Err(error) => {
                self.status.note(vec![format!(
                    "the name of the service, \"{}\", {error}: peers would refuse its identity; rename it, or set \
                     allow_percent_encoding in peers here and at every peer",
                    definition.service
                )]);
                return Ok(());
            }
        };
        // Resolving an address can block.
        let settings = Arc::clone(&self.settings);
        let worked_out = tokio::task::spawn_blocking({
            let (definition, service) = (Arc::clone(&definition), service.clone());
            move || definition::of_registration(&definition, &service, &settings)
        });
        let (config, mut notes) = worked_out
            .await
            .map_err(|error| Failure::new(Exit::Failed, format!("the registration cannot be read: {error}")))?;
        let Some(running) = self.status.running.get() else {
            self.status.note(notes);
            return self.start(service, config, definition.datacenter.clone()).await;
        };
        if running.service != service.as_str() {
            notes
                .push(format!("it stands for {service} now, and this process for {}: start it again", running.service));
            self.status.note(notes);
            return Ok(());
        }
        self.status.note(notes);
        if let Some(datacenter) = &definition.datacenter {
            running.source.expect_datacenter(datacenter.clone());
        }
        log_applied(&running.sidecar.apply(config));
        Ok(())
    }
}

fn log_applied(applied: &Applied) {
    let Applied { added, changed, removed, inbound_changed, failed } = applied;
    if !added.is_empty() || !changed.is_empty() || !removed.is_empty() || *inbound_changed {
        tracing::info!(?added, ?changed, ?removed, inbound_changed, "the configuration changed");
    }
    for error in failed {
        tracing::error!(%error, "a part of the configuration could not be taken over; the rest serves");
    }
}

/// An address that flags or file name and that cannot be had.
fn not_bound(error: &BindError) -> Failure {
    if error.source.kind() == std::io::ErrorKind::AddrInUse {
        return Failure::new(
            Exit::AddressInUse,
            format!("{error}\n    Stop what listens there, or choose another address."),
        );
    }
    Failure::new(Exit::Failed, error.to_string())
}

/// Finds the sidecar of a service, or says why nothing can start.
async fn look_up(client: &AgentClient, service: &str, settings: &Settings) -> Result<String, Failure> {
    let address = &settings.agent.address;
    find_sidecar(client, service).await.map_err(|error| {
        let advice = match &error {
            SidecarError::None(_) => {
                format!("\n    Register {service} with connect.sidecar_service, or check the token.")
            }
            SidecarError::Several { .. } => String::new(),
            _ => {
                let https = matches!(address.endpoint(), Endpoint::Https(_));
                let certificates = if https { ", its CA (-ca-file) and whether it asks for -client-cert" } else { "" };
                format!(
                    "\n    The agent is looked for at {address}; check that it runs there, -http-addr, the \
                     token{certificates}."
                )
            }
        };
        Failure::new(Exit::Agent, format!("{error}{advice}"))
    })
}

/// Binds and serves the admin pages.
async fn serve_admin(
    wanted: Admin,
    status: &Arc<Status>,
    tasks: &mut Vec<JoinHandle<()>>,
) -> Result<Option<SocketAddr>, Failure> {
    let listener = match wanted {
        Admin::Off => return Ok(None),
        Admin::At(address) => admin::bind(address).await.map_err(|error| {
            let exit = if error.kind() == std::io::ErrorKind::AddrInUse { Exit::AddressInUse } else { Exit::Failed };
            Failure::new(exit, format!("the admin listener cannot have {address}: {error}; choose another with -admin"))
        })?,
        Admin::Default => match admin::bind(DEFAULT_ADMIN).await {
            Ok(listener) => listener,
            // Several sidecars on one host are the rule, so the default is no promise.
            Err(_) => match admin::bind(SocketAddr::new(DEFAULT_ADMIN.ip(), 0)).await {
                Ok(listener) => listener,
                Err(error) => {
                    tracing::warn!(%error, "there is no admin listener");
                    return Ok(None);
                }
            },
        },
    };
    let address = listener.local_addr().ok();
    if let Some(address) = address {
        tracing::info!(%address, "admin listener");
    }
    let any_host = address.is_some_and(|address| !address.ip().is_loopback());
    tasks.push(tokio::spawn(admin::serve(listener, Arc::clone(status) as Arc<dyn admin::Status>, any_host)));
    Ok(address)
}

/// Looks at readiness, tells whoever waits for it, and logs when it turns.
async fn keep_looking(status: Arc<Status>, tell: watch::Sender<Ready>) {
    let mut was_ready = false;
    let mut ticks = tokio::time::interval(LOOK);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let now = status.ready();
        tell.send_if_modified(|last| {
            if *last == now {
                return false;
            }
            // Problems that do not end service have been logged by those who have them.
            let turned = last.ready != now.ready || last.pending != now.pending;
            if !turned {
                tracing::debug!(sidecar = status.name, problems = ?now.problems, "other problems than before");
            } else if now.ready {
                tracing::info!(sidecar = status.name, problems = ?now.problems, "ready");
            } else if status.stopping.load(Ordering::Relaxed) {
                tracing::info!(sidecar = status.name, "stopping");
            } else if !was_ready {
                tracing::info!(sidecar = status.name, pending = ?now.pending, problems = ?now.problems, "not ready yet");
            } else {
                tracing::warn!(sidecar = status.name, pending = ?now.pending, problems = ?now.problems, "not ready");
            }
            was_ready |= now.ready;
            *last = now;
            true
        });
    }
}

/// Readiness in the words of the registration's check.
fn readiness(mut ready: watch::Receiver<Ready>) -> (watch::Receiver<Readiness>, JoinHandle<()>) {
    let in_words = |ready: &Ready| {
        if ready.ready {
            return Readiness::Ready;
        }
        let words: Vec<&str> = ready.pending.iter().chain(&ready.problems).map(String::as_str).collect();
        Readiness::NotReady(if words.is_empty() { "starting".to_owned() } else { words.join("; ") })
    };
    let (tell, readiness) = watch::channel(in_words(&ready.borrow_and_update()));
    let task = tokio::spawn(async move {
        while ready.changed().await.is_ok() {
            let now = in_words(&ready.borrow_and_update());
            tell.send_if_modified(|last| {
                let changed = *last != now;
                *last = now;
                changed
            });
        }
    });
    (readiness, task)
}

fn registration_of(registering: &Registering, service: &ServiceName) -> RegistrationSettings {
    RegistrationSettings {
        service: service.as_str().to_owned(),
        id_suffix: registering.suffix.clone(),
        address: Some(registering.host.clone()).filter(|host| !host.is_empty()),
        port: registering.port,
    }
}
