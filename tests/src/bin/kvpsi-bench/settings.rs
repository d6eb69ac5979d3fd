//! The caches that are compared, and their names in JSON.
//!
//! Owns which ones: every encoding as it is, then each budget by each policy,
//! by dropping tokens alone and by the whole ladder. Invariant: a row is known
//! by its policy, encoding and budget, in every measurement.

use kvpsi::{
    eval::KvSetting,
    kv::{KvType, evict::Evict},
};
use serde_json::{Value, json};

/// The narrowest encoding there is.
pub const NARROWEST: KvType = KvType::ALL[KvType::ALL.len() - 1];

#[derive(Clone, Debug, clap::Args)]
pub struct Which {
    /// Shares of the bytes in f16 that a cache is held to
    #[arg(long, value_delimiter = ',', default_values_t = [0.5, 0.25, 0.125])]
    budgets: Vec<f64>,
    /// Policies that choose what is dropped [default: all]
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = Evict::ALL)]
    policies: Vec<Evict>,
    /// Encodings of whole caches [default: all]
    #[arg(long, value_enum, value_delimiter = ',', default_values_t = KvType::ALL)]
    whole: Vec<KvType>,
    /// Budgets at which tokens are also dropped alone, by every policy
    /// [default: all, by `policies`]
    #[arg(long, value_delimiter = ',')]
    pure_budgets: Option<Vec<f64>>,
    /// Nothing of the kind
    #[arg(long)]
    no_pure: bool,
}

impl Which {
    /// A whole cache in f16 first: the others are set beside it.
    pub fn settings(&self) -> Vec<KvSetting> {
        let mut whole = self.whole.clone();
        whole.retain(|k| *k != KvType::F16);
        whole.insert(0, KvType::F16);
        let mut all: Vec<_> = whole.into_iter().map(KvSetting::whole).collect();
        match &self.pure_budgets {
            _ if self.no_pure => {}
            Some(budgets) => all.extend(held(budgets, &Evict::ALL, KvType::F16)),
            None => all.extend(held(&self.budgets, &self.policies, KvType::F16)),
        }
        all.extend(held(&self.budgets, &self.policies, NARROWEST));
        all
    }
}

fn held(budgets: &[f64], policies: &[Evict], pack_to: KvType) -> Vec<KvSetting> {
    let each = budgets.iter().flat_map(|budget| {
        policies.iter().map(move |evict| KvSetting {
            kv_type: KvType::F16,
            pack_to,
            evict: *evict,
            budget: *budget,
        })
    });
    each.collect()
}

/// What a row is known by.
pub fn key(setting: &KvSetting) -> Value {
    let held = setting.budget < 1.0;
    let kv = if held && setting.pack_to != setting.kv_type {
        "ladder"
    } else {
        setting.kv_type.name()
    };
    json!({
        "policy": held.then(|| setting.evict.name()),
        "kv": kv,
        "budget": setting.budget,
        "default_policy": held && setting.evict == Evict::default(),
    })
}

/// A row: what it is known by, and what was measured.
pub fn row(setting: &KvSetting, measured: Value) -> Value {
    let mut row = key(setting);
    if let (Value::Object(row), Value::Object(more)) = (&mut row, measured) {
        row.extend(more);
    }
    row
}

/// The same for a watcher.
pub fn name(setting: &KvSetting) -> String {
    let key = key(setting);
    let kv = key["kv"].as_str().unwrap_or_default();
    match key["policy"].as_str() {
        Some(policy) => format!("{kv} {:.1} % by {policy}", setting.budget * 100.0),
        None => format!("{kv}, whole"),
    }
}
