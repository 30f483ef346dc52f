//! The last connection records, for `/connections`: whoever looks after the fact still sees who called.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::SystemTime,
};

use serde_json::{Map, Value};
use tracing::{
    Event, Metadata, Subscriber,
    field::{Field, Visit},
};
use tracing_subscriber::layer::{Context, Filter};

/// The target under which the data plane writes its records.
const TARGET: &str = "lictor::connection";

/// How many records are kept.
const KEPT: usize = 100;

/// The last records; clones share them.
#[derive(Clone, Default)]
pub(crate) struct Records(Arc<Mutex<VecDeque<Value>>>);

impl Records {
    /// The records of the sidecar with this identity, the newest first.
    pub(crate) fn of(&self, own_identity: &str) -> Vec<Value> {
        let records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        records.iter().rev().filter(|record| record["own.identity"] == own_identity).cloned().collect()
    }
}

impl<S: Subscriber> tracing_subscriber::Layer<S> for Records {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields(Map::new());
        fields.0.insert("ended".to_owned(), crate::admin::rfc3339(SystemTime::now()).into());
        event.record(&mut fields);
        fields.0.remove("message");
        let mut records = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() == KEPT {
            records.pop_front();
        }
        records.push_back(Value::Object(fields.0));
    }
}

/// Lets only records through.
pub(crate) struct OnlyRecords;

impl<S> Filter<S> for OnlyRecords {
    fn enabled(&self, metadata: &Metadata<'_>, _context: &Context<'_, S>) -> bool {
        metadata.target() == TARGET && *metadata.level() <= tracing::Level::INFO
    }
}

/// The fields of an event as JSON.
struct Fields(Map<String, Value>);

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.0.insert(field.name().to_owned(), value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.0.insert(field.name().to_owned(), format!("{value:?}").into());
    }
}

#[cfg(test)]
mod tests {
    use tracing_subscriber::{Layer as _, layer::SubscriberExt as _};

    use super::*;

    #[test]
    fn records_are_kept_for_the_identity_that_they_belong_to() {
        let records = Records::default();
        let subscriber = tracing_subscriber::registry().with(records.clone().with_filter(OnlyRecords));
        tracing::subscriber::with_default(subscriber, || {
            for number in 0..KEPT + 1 {
                tracing::info!(target: TARGET, { connection.id = number as u64, own.identity = "web" }, "connection ended");
            }
            tracing::info!(target: TARGET, { own.identity = "api" }, "connection ended");
            tracing::info!("another line");
        });
        let web = records.of("web");
        assert_eq!(web.len(), KEPT - 1);
        assert_eq!(web[0]["connection.id"], KEPT as u64);
        assert_eq!(records.of("api").len(), 1);
    }
}
