//! The metrics page: snapshots of the parts, encoded at the moment of the scrape.

use std::{fmt, sync::Arc, time::SystemTime};

use lictor_core::{Crypto, consul::AgentHealth};
use lictor_proxy::metrics::{DURATION_BOUNDS_MICROS, HistogramSnapshot, MetricsSnapshot, PathSnapshot};
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::Registry,
};

/// All numbers of one sidecar at one moment.
#[derive(Clone, Debug)]
pub(crate) struct Numbers {
    pub(crate) service: String,
    pub(crate) crypto: Arc<Crypto>,
    pub(crate) proxy: MetricsSnapshot,
    pub(crate) agent: AgentHealth,
    pub(crate) ready: bool,
    /// Validity of our leaf, and how many roots are trusted.
    pub(crate) material: Option<MaterialNumbers>,
    pub(crate) log_lines_dropped: u64,
}

/// What is told of the material in numbers.
#[derive(Clone, Copy, Debug)]
pub(crate) struct MaterialNumbers {
    pub(crate) generation: u64,
    pub(crate) not_before: u64,
    pub(crate) not_after: u64,
    pub(crate) roots: usize,
    pub(crate) roots_generation: u64,
}

/// The page for a scrape, in the OpenMetrics text format.
pub(crate) fn page(numbers: Numbers) -> String {
    let mut registry = Registry::with_prefix("lictor");
    registry.register_collector(Box::new(Page(Arc::new(numbers))));
    let mut text = String::new();
    // Writing to a String does not fail.
    let _ = prometheus_client::encoding::text::encode(&mut text, &registry);
    text
}

#[derive(Debug)]
struct Page(Arc<Numbers>);

type Labels<'a> = Vec<(&'static str, &'a str)>;

impl Collector for Page {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let numbers = &*self.0;
        let Numbers { service, proxy, agent, crypto, .. } = numbers;
        let service = ("service", service.as_str());
        let mut paths: Vec<(Labels<'_>, &PathSnapshot)> =
            vec![(vec![service, ("direction", "inbound"), ("upstream", "")], &proxy.inbound)];
        for (name, path) in &proxy.upstreams {
            paths.push((vec![service, ("direction", "outbound"), ("upstream", name)], path));
        }

        let mut info = encoder.encode_descriptor("build", "What runs here", None, MetricType::Info)?;
        info.encode_info(&vec![("version", env!("CARGO_PKG_VERSION")), ("tls", crypto.backend)])?;
        let mut info = encoder.encode_descriptor("tls", "The TLS library and what it does", None, MetricType::Info)?;
        info.encode_info(&vec![
            ("backend", crypto.backend),
            ("library", &crypto.library),
            ("fips", if crypto.fips.enabled { "true" } else { "false" }),
            ("versions", &crypto.versions.join(",")),
            ("groups", &crypto.groups.join(",")),
            ("suites", &crypto.suites.join(",")),
            ("signature_schemes", &crypto.signature_schemes.join(",")),
        ])?;

        let mut out = Out(&mut encoder);
        out.gauge("ready", "1 when everything serves, as on /ready", [(vec![service], u64::from(numbers.ready))])?;
        out.gauge(
            "tls_fips",
            "1 when the TLS library says that it is in FIPS mode",
            [(vec![service], u64::from(crypto.fips.enabled))],
        )?;
        out.gauge(
            "tls_differences",
            "Points in which the TLS library differs from the policy, as /crypto lists them",
            [(vec![service], crypto.differs.len() as u64)],
        )?;
        let each =
            |value: fn(&PathSnapshot) -> u64| paths.iter().map(move |(labels, path)| (labels.clone(), value(path)));
        out.counter("connections_accepted", "Sockets accepted", each(|path| path.accepted))?;
        out.gauge("connections_open", "Connections that are proven and open", each(|path| path.open))?;
        out.counter("connections_established", "Connections that were proven", each(|path| path.established))?;
        out.counter("tx_bytes", "Bytes sent to whoever opened the connection", each(|path| path.tx_bytes))?;
        out.counter("rx_bytes", "Bytes received from whoever opened the connection", each(|path| path.rx_bytes))?;
        out.counter(
            "accept_errors",
            "Errors of accept after which the listener went on",
            each(|path| path.accept_errors),
        )?;
        out.counter(
            "bare_opens",
            "Connections closed without a byte, as health checks do",
            each(|path| path.bare_opens),
        )?;
        let named = |value: fn(&PathSnapshot) -> &Vec<(&'static str, u64)>, label: &'static str| {
            paths.iter().flat_map(move |(labels, path)| {
                value(path).iter().map(move |(name, count)| {
                    let mut labels = labels.clone();
                    labels.push((label, *name));
                    (labels, *count)
                })
            })
        };
        out.counter(
            "peers_rejected",
            "Peers that the verifier refused, by reason",
            named(|path| &path.rejected, "reason"),
        )?;
        out.counter(
            "connections_refused",
            "Connections that were not authorized, by kind; only kind \"denied\" is a decision",
            named(|path| &path.refused, "kind"),
        )?;
        out.counter("connections_limited", "Connections turned away by a limit", named(|path| &path.limited, "limit"))?;
        out.counter(
            "handshakes_failed",
            "Handshakes that failed other than by a verdict of ours",
            named(|path| &path.handshake_failures, "failure"),
        )?;
        out.counter("connections_ended", "All other ends of connections", named(|path| &path.ended, "reason"))?;
        out.histogram(
            "handshake_duration_seconds",
            "How long successful handshakes took, without authorization",
            paths.iter().map(|(labels, path)| (labels, &path.handshake)),
        )?;
        out.histogram(
            "authorize_duration_seconds",
            "How long the question to the agent took, whatever the answer",
            paths.iter().take(1).map(|(labels, path)| (labels, &path.authorize)),
        )?;
        out.counter(
            "reauthorizations",
            "How often the open connections of a peer were judged again, by what came of it",
            proxy.rejudged.iter().map(|(outcome, count)| (vec![service, ("outcome", *outcome)], *count)),
        )?;
        out.gauge("held_bytes", "Bytes held for slow readers", [(vec![service], proxy.held_bytes)])?;
        out.gauge(
            "connection_slots_used",
            "Connection slots in use, handshakes included",
            [(vec![service], proxy.connections_in_use)],
        )?;
        out.gauge(
            "handshakes_in_flight",
            "Inbound handshakes under way",
            [(vec![service], proxy.handshakes_in_flight)],
        )?;

        if let Some(material) = numbers.material {
            let one = |value: u64| [(vec![service], value)];
            out.gauge("material_generation", "Counts up with each rotation", one(material.generation))?;
            out.gauge("leaf_not_before_seconds", "When our certificate becomes valid", one(material.not_before))?;
            out.gauge("leaf_not_after_seconds", "When our certificate expires", one(material.not_after))?;
            out.gauge("roots", "Roots that are trusted", one(material.roots as u64))?;
            out.gauge("roots_generation", "Counts up with each list of roots", one(material.roots_generation))?;
        }

        out.counter(
            "agent_calls",
            "Calls to the agent by class and outcome",
            agent.calls.iter().map(|(class, outcome, count)| {
                (vec![service, ("class", class.name()), ("outcome", outcome.name())], *count)
            }),
        )?;
        if let Some(reachable) = agent.reachable {
            out.gauge(
                "agent_reachable",
                "1 when the last exchange reached the agent",
                [(vec![service], u64::from(reachable))],
            )?;
        }
        if let Some(seconds) = agent.last_reached.and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok()) {
            out.gauge(
                "agent_last_reached_seconds",
                "When the agent was reached last",
                [(vec![service], seconds.as_secs())],
            )?;
        }
        out.counter(
            "log_lines_dropped",
            "Lines of the log that found its queue full",
            [(vec![service], numbers.log_lines_dropped)],
        )
    }
}

/// Writes whole families.
struct Out<'a, 'e>(&'a mut DescriptorEncoder<'e>);

impl Out<'_, '_> {
    fn counter<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Counter, values, |mut encoder, value| {
            encoder.encode_counter::<NoLabelSet, _, u64>(&value, None)
        })
    }

    fn gauge<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
    ) -> fmt::Result {
        self.family(name, help, MetricType::Gauge, values, |mut encoder, value| {
            encoder.encode_gauge(&i64::try_from(value).unwrap_or(i64::MAX))
        })
    }

    fn family<'l>(
        &mut self,
        name: &str,
        help: &str,
        kind: MetricType,
        values: impl IntoIterator<Item = (Labels<'l>, u64)>,
        write: impl Fn(MetricEncoder<'_>, u64) -> fmt::Result,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, kind)?;
        for (labels, value) in values {
            write(family.encode_family(&labels)?, value)?;
        }
        Ok(())
    }

    fn histogram<'l>(
        &mut self,
        name: &str,
        help: &str,
        values: impl IntoIterator<Item = (&'l Labels<'l>, &'l HistogramSnapshot)>,
    ) -> fmt::Result {
        #[expect(clippy::cast_precision_loss, reason = "bounds of at most ten seconds in microseconds are exact")]
        let bounds = DURATION_BOUNDS_MICROS.map(|micros| micros as f64 / 1e6);
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Histogram)?;
        for (labels, snapshot) in values {
            let buckets: Vec<(f64, u64)> =
                bounds.into_iter().chain([f64::INFINITY]).zip(snapshot.buckets.iter().copied()).collect();
            family.encode_family(labels)?.encode_histogram::<NoLabelSet>(
                snapshot.sum.as_secs_f64(),
                snapshot.count,
                &buckets,
                None,
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use lictor_core::Fips;

    use super::*;

    fn path() -> PathSnapshot {
        let histogram = HistogramSnapshot { count: 1, sum: std::time::Duration::from_millis(2), buckets: [0; 11] };
        PathSnapshot {
            accepted: 3,
            open: 1,
            established: 2,
            tx_bytes: 300,
            rx_bytes: 10,
            accept_errors: 0,
            bare_opens: 0,
            handshake: HistogramSnapshot { buckets: [0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0], ..histogram.clone() },
            authorize: histogram,
            rejected: vec![("unknown_issuer", 4)],
            refused: vec![("denied", 5)],
            limited: Vec::new(),
            handshake_failures: Vec::new(),
            ended: Vec::new(),
        }
    }

    #[test]
    fn a_scrape_holds_every_number_under_a_name_of_its_own() {
        let text = page(Numbers {
            service: "api".to_owned(),
            crypto: Arc::new(Crypto {
                backend: "rustls",
                library: "a \"library\" 1.2".to_owned(),
                fips: Fips { enabled: true, means: "", self_test: "" },
                versions: vec!["TLSv1.3", "TLSv1.2"],
                suites: vec!["SUITE"],
                groups: vec!["x25519", "secp256r1"],
                signature_schemes: vec!["SCHEME"],
                differs: vec!["In one thing.".to_owned()],
            }),
            proxy: MetricsSnapshot {
                rejudged: vec![("revoked", 2)],
                inbound: path(),
                upstreams: [("db".to_owned(), path())].into(),
                held_bytes: 7,
                connections_in_use: 8,
                handshakes_in_flight: 9,
                material_generation: Some(1),
            },
            agent: AgentHealth::default(),
            ready: true,
            material: None,
            log_lines_dropped: 6,
        });
        for line in [
            "lictor_ready{service=\"api\"} 1",
            "lictor_tx_bytes_total{service=\"api\",direction=\"inbound\",upstream=\"\"} 300",
            "lictor_connections_open{service=\"api\",direction=\"outbound\",upstream=\"db\"} 1",
            "lictor_peers_rejected_total{service=\"api\",direction=\"inbound\",upstream=\"\",reason=\"unknown_issuer\"} 4",
            "lictor_connections_refused_total{service=\"api\",direction=\"inbound\",upstream=\"\",kind=\"denied\"} 5",
            "lictor_handshake_duration_seconds_bucket{le=\"0.0025\",service=\"api\",direction=\"inbound\",upstream=\"\"} 1",
            "lictor_handshake_duration_seconds_bucket{le=\"+Inf\",service=\"api\",direction=\"inbound\",upstream=\"\"} 1",
            "lictor_log_lines_dropped_total{service=\"api\"} 6",
            "lictor_reauthorizations_total{service=\"api\",outcome=\"revoked\"} 2",
            "lictor_tls_info{backend=\"rustls\",library=\"a \\\"library\\\" 1.2\",fips=\"true\",versions=\"TLSv1.3,TLSv1.2\",\
             groups=\"x25519,secp256r1\",suites=\"SUITE\",signature_schemes=\"SCHEME\"} 1",
            "lictor_tls_fips{service=\"api\"} 1",
            "lictor_tls_differences{service=\"api\"} 1",
        ] {
            assert!(text.lines().any(|each| each == line), "{line}\nis not in\n{text}");
        }
        assert!(text.ends_with("# EOF\n"));
        let families: Vec<&str> = text.lines().filter(|line| line.starts_with("# TYPE ")).collect();
        let distinct: std::collections::BTreeSet<_> = families.iter().collect();
        assert_eq!(distinct.len(), families.len());
    }
}
