//! Bad input: one message with file, line or key, what is wrong, what to write instead; and the exit code.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};

use crate::{
    app::App,
    cases::crypto::report,
    runner::{Case, case},
    world::World,
};

const NO_AGENT: &str = "no agent is asked";

pub(crate) const CASES: &[Case] = &[
    case!(input_a_good_file_of_each_format_is_valid).embedded(NO_AGENT),
    case!(input_an_unknown_key_is_named_with_file_line_and_the_nearest_one).embedded(NO_AGENT),
    case!(input_a_wrong_type_is_named_with_what_to_write).embedded(NO_AGENT),
    case!(input_a_duplicate_key_is_an_error).embedded(NO_AGENT),
    case!(input_a_backend_that_is_not_linked_is_answered_with_the_linked_ones).embedded(NO_AGENT),
    case!(input_an_unreadable_file_is_named).embedded(NO_AGENT),
    case!(input_an_unknown_flag_is_a_usage_error_with_a_suggestion).embedded(NO_AGENT),
    case!(input_an_upstream_address_in_use_ends_the_start),
    case!(input_the_version_names_what_is_linked).embedded(NO_AGENT),
];

const INVALID: i32 = 3;

/// Validates a file of this name and text: exit code and message.
async fn validate(world: &World, name: &str, text: &str) -> Result<(i32, String)> {
    let path = world.file(name, text)?;
    world.command(&["validate"]).arg(path).ends().await.with_context(|| name.to_owned())
}

/// A file is refused, and the message holds all of this.
async fn refused(world: &World, name: &str, text: &str, parts: &[&str]) -> Result<()> {
    let (code, said) = validate(world, name, text).await?;
    ensure!(code == INVALID, "{name}: exit code {code}: {said}");
    for part in parts.iter().chain(&[name]) {
        ensure!(said.contains(part), "{name}: the message does not hold {part:?}: {said}");
    }
    Ok(())
}

async fn input_a_good_file_of_each_format_is_valid(world: Arc<World>) -> Result<()> {
    let files = [
        ("good.hcl", "service = \"web\"\nupstream \"db\" {\n  port = 5432\n}\nlog {\n  level = \"debug\"\n}\n"),
        ("good.toml", "service = \"web\"\n[upstream.db]\nport = 5432\n[log]\nlevel = \"debug\"\n"),
        (
            "good.json",
            "{\"service\": \"web\", \"upstream\": {\"db\": {\"port\": 5432}}, \"log\": {\"level\": \"debug\"}}\n",
        ),
        ("good.yaml", "service: web\nupstream:\n  db:\n    port: 5432\nlog:\n  level: debug\n"),
    ];
    for (name, text) in files {
        let (code, said) = validate(&world, name, text).await?;
        ensure!(code == 0, "{name}: exit code {code}: {said}");
    }
    Ok(())
}

async fn input_an_unknown_key_is_named_with_file_line_and_the_nearest_one(world: Arc<World>) -> Result<()> {
    let files = [
        ("unknown.hcl", "service = \"web\"\nadmin {\n  adress = \"127.0.0.1:1\"\n}\n"),
        ("unknown.toml", "service = \"web\"\n[admin]\nadress = \"127.0.0.1:1\"\n"),
        ("unknown.json", "{\"service\": \"web\",\n \"admin\": {\n  \"adress\": \"127.0.0.1:1\"}}\n"),
        ("unknown.yaml", "service: web\nadmin:\n  adress: \"127.0.0.1:1\"\n"),
    ];
    for (name, text) in files {
        refused(&world, name, text, &["adress", "address", "3"]).await?;
    }
    Ok(())
}

async fn input_a_wrong_type_is_named_with_what_to_write(world: Arc<World>) -> Result<()> {
    let files = [
        ("type.hcl", "service = \"web\"\nupstream \"db\" {\n  port = \"5432\"\n}\n"),
        ("type.toml", "service = \"web\"\n[upstream.db]\nport = \"5432\"\n"),
        ("type.json", "{\"service\": \"web\",\n \"upstream\": {\"db\": {\n  \"port\": \"5432\"}}}\n"),
        ("type.yaml", "service: web\nupstream:\n  db: \n    port: \"5432\"\n"),
    ];
    for (name, text) in files {
        refused(&world, name, text, &["port", "without quotes"]).await?;
    }
    refused(&world, "switch.yaml", "service: web\nlog:\n  json: \"yes\"\n", &["json", "true or false"]).await
}

async fn input_a_duplicate_key_is_an_error(world: Arc<World>) -> Result<()> {
    refused(&world, "twice.toml", "service = \"web\"\nservice = \"api\"\n", &["service"]).await?;
    refused(&world, "twice.json", "{\"service\": \"web\",\n \"service\": \"api\"}\n", &["service"]).await?;
    refused(&world, "twice.hcl", "service = \"web\"\nservice = \"api\"\n", &["service"]).await?;
    refused(&world, "twice.yaml", "service: web\nservice: api\n", &["service"]).await
}

async fn input_a_backend_that_is_not_linked_is_answered_with_the_linked_ones(world: Arc<World>) -> Result<()> {
    let linked = linked(&world).await?;
    let parts: Vec<&str> = linked.iter().map(String::as_str).chain(["gnutls"]).collect();
    refused(&world, "backend.toml", "service = \"web\"\n[tls]\nbackend = \"gnutls\"\n", &parts).await
}

async fn input_an_unreadable_file_is_named(world: Arc<World>) -> Result<()> {
    let missing = world.folder().join("no-such-file.toml");
    let (code, said) = world.command(&["proxy", "-config"]).arg(&missing).ends().await?;
    ensure!(code == INVALID && said.contains("no-such-file.toml"), "exit code {code}: {said}");
    Ok(())
}

async fn input_an_unknown_flag_is_a_usage_error_with_a_suggestion(world: Arc<World>) -> Result<()> {
    let (code, said) = world.command(&["proxy", "-sidecar-fro", "web"]).ends().await?;
    ensure!(code == 2 && said.contains("sidecar-for"), "exit code {code}: {said}");
    Ok(())
}

async fn input_an_upstream_address_in_use_ends_the_start(world: Arc<World>) -> Result<()> {
    let agent = world.agent().await?;
    let taken = App::echo().await?;
    let flag = format!("db:{}", taken.port());
    let (code, said) = world.proxy(&agent)?.args(&["-service", "web", "-upstream", &flag]).ends().await?;
    ensure!(code == 5, "exit code {code}: {said}");
    ensure!(said.contains(&taken.port().to_string()) && said.contains("in use"), "{said}");
    Ok(())
}

async fn input_the_version_names_what_is_linked(world: Arc<World>) -> Result<()> {
    let (code, said) = world.command(&["version"]).ends().await?;
    let linked = linked(&world).await?;
    ensure!(code == 0 && linked.iter().all(|name| said.contains(name)), "exit code {code}: {said}");
    Ok(())
}

/// The TLS libraries of the binary under test.
async fn linked(world: &World) -> Result<Vec<String>> {
    serde_json::from_value(report(world).await?["linked"].clone()).context("no list of libraries")
}
