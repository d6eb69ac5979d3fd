//! The dashboard against the list.

use super::*;
use serde_json::Value;
use std::collections::BTreeSet;

const DASHBOARD: &str = include_str!("../../../../docs/grafana.json");

fn dashboard() -> Value {
    serde_json::from_str(DASHBOARD).unwrap()
}

/// Every string under a key of this name.
fn all_of<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(map) => {
            for (k, v) in map {
                match v {
                    Value::String(s) if k == key => found.push(s),
                    v => all_of(v, key, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|v| all_of(v, key, found)),
        _ => {}
    }
}

/// Queries of panels, annotations and variables.
fn queries(dashboard: &Value) -> Vec<&str> {
    let mut found = Vec::new();
    for key in ["expr", "definition"] {
        all_of(dashboard, key, &mut found);
    }
    found
}

/// Words of a query that are ours: (name, what stands in braces behind it).
fn metrics(query: &str) -> Vec<(String, String)> {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == ':';
    let mut rest = query;
    let mut found = Vec::new();
    while let Some(start) = rest.find(word) {
        rest = &rest[start..];
        let end = rest.find(|c| !word(c)).unwrap_or(rest.len());
        let (name, after) = rest.split_at(end);
        rest = after;
        if ["vllm:", "kvpsi_", "process_"]
            .iter()
            .any(|p| name.starts_with(p))
        {
            let braces = after.strip_prefix('{').and_then(|b| b.split_once('}'));
            let selector = braces.map_or("", |(inner, _)| inner);
            found.push((name.to_owned(), selector.to_owned()));
        }
    }
    found
}

fn known(name: &str) -> Option<Metric> {
    ALL.iter().copied().find(|m| match m.shape {
        Shape::Histogram(_) => ["_bucket", "_sum", "_count"]
            .iter()
            .any(|suffix| name.strip_suffix(suffix) == Some(m.name)),
        _ => m.name == name,
    })
}

/// Labels that Prometheus adds.
fn added(label: &str) -> bool {
    ["instance", "job", "le"].contains(&label)
}

#[test]
fn every_metric_and_label_of_the_dashboard_is_exported() {
    let dashboard = dashboard();
    let mut seen = 0;
    for query in queries(&dashboard) {
        let found = metrics(query);
        assert!(!found.is_empty(), "{query}");
        for (name, selector) in found {
            let metric = known(&name).unwrap_or_else(|| panic!("{name} in {query}"));
            let labels = selector.split(',').filter(|s| !s.trim().is_empty());
            for label in labels.filter_map(|l| l.split(['=', '!']).next()) {
                let label = label.trim();
                let has = metric.labels.contains(&label) || added(label);
                assert!(has, "{label} of {name} in {query}");
            }
            seen += 1;
        }
    }
    assert!(
        seen >= 30,
        "only {seen}: are these the dashboard's queries?"
    );
}

#[test]
fn what_the_dashboard_groups_by_is_a_label_of_what_it_sums() {
    let dashboard = dashboard();
    for query in queries(&dashboard) {
        let metric = metrics(query)
            .first()
            .and_then(|(name, _)| known(name))
            .unwrap();
        for by in query.split("by (").skip(1) {
            for label in by.split(')').next().unwrap().split(',') {
                let label = label.trim();
                let has = metric.labels.contains(&label) || added(label);
                assert!(has, "{label} in {query}");
            }
        }
    }
}

#[test]
fn all_that_is_exported_is_on_the_dashboard() {
    let dashboard = dashboard();
    let shown: BTreeSet<_> = queries(&dashboard)
        .into_iter()
        .flat_map(metrics)
        .filter_map(|(name, _)| Some(known(&name)?.name))
        .collect();
    let missing: Vec<_> = ALL.iter().filter(|m| !shown.contains(m.name)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

#[test]
fn trims_are_annotations_and_every_panel_asks_the_chosen_source() {
    let dashboard = dashboard();
    let annotations = dashboard["annotations"]["list"].as_array().unwrap();
    let trims = annotations.iter().find(|a| a["name"] == "Trims").unwrap();
    let of = metrics(trims["expr"].as_str().unwrap());
    assert_eq!(of[0].0, TRIMS.name);

    let mut sources = Vec::new();
    all_of(&dashboard["panels"], "uid", &mut sources);
    assert!(sources.iter().all(|uid| *uid == "${datasource}"));
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    let names: Vec<_> = variables
        .iter()
        .map(|v| v["name"].as_str().unwrap())
        .collect();
    assert_eq!(names, ["datasource", "instance", MODEL]);

    let panels = dashboard["panels"].as_array().unwrap();
    let ids: BTreeSet<_> = panels.iter().map(|p| p["id"].as_u64().unwrap()).collect();
    assert_eq!(ids.len(), panels.len());
}

#[test]
fn names_are_prometheuss_and_say_their_shape() {
    let names: BTreeSet<_> = ALL.iter().map(|m| m.name).collect();
    assert_eq!(names.len(), ALL.len());
    for m in ALL {
        let valid = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_' || c == ':';
        assert!(m.name.chars().all(valid), "{}", m.name);
        let total = m.name.ends_with("_total");
        let rises = matches!(m.shape, Shape::Counter | Shape::Seconds);
        assert_eq!(total, rises, "{}", m.name);
        assert_eq!(
            m.labels.contains(&MODEL),
            m.name.starts_with("vllm:"),
            "{}",
            m.name
        );
        if let Shape::Histogram(bounds) = m.shape {
            assert!(bounds.is_sorted_by(|a, b| a < b), "{}", m.name);
        }
    }
}
