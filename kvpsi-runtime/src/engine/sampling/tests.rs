use super::*;
use proptest::prelude::*;

fn config() -> SamplingConfig {
    SamplingConfig {
        temperature: 1.0,
        top_p: None,
        top_k: None,
        repeat_penalty: 1.0,
        ..SamplingConfig::default()
    }
}

/// How often each token is drawn.
fn draws(c: &SamplingConfig, logits: &[f32], times: usize) -> Vec<usize> {
    let mut sampler = Sampler::new(c);
    let mut counts = vec![0; logits.len()];
    for _ in 0..times {
        counts[sampler.sample(&mut logits.to_vec(), &[], 0, &[]).unwrap().0 as usize] += 1;
    }
    counts
}

proptest! {
    #[test]
    fn the_likeliest_are_those_of_a_full_sort(
        logits in prop::collection::vec(-4i8..4, 1..300), k in 1usize..20,
    ) {
        // Few values: many ties.
        let logits: Vec<f32> = logits.into_iter().map(f32::from).collect();
        let mut want: Vec<(f32, u32)> = logits.iter().copied().zip(0u32..).collect();
        want.sort_by(by_logit);
        want.truncate(k);
        let mut got = Vec::new();
        likeliest(&logits, k, &mut got);
        prop_assert_eq!(got, want);
    }

    #[test]
    fn the_nucleus_is_that_of_a_full_sort(
        logits in prop::collection::vec(-9f32..9.0, 1..200), p in 0.05f64..0.99,
    ) {
        let mut want: Vec<(f32, u32)> = logits.iter().copied().zip(0u32..).collect();
        want.sort_by(by_logit);
        let mut got = Vec::new();
        let mass = nucleus_and_more(&logits, p, 0.8, &mut got);
        keep_nucleus(&mut got, p, mass, 0.8);
        keep_nucleus(&mut want, p, mass, 0.8);
        prop_assert_eq!(got, want);
    }
}

#[test]
fn tokens_are_drawn_as_often_as_their_probability_says() {
    let shares = [0.5f32, 0.25, 0.125, 0.125];
    let logits = shares.map(f32::ln);
    let all = draws(&config(), &logits, 4000);
    for (count, share) in all.iter().zip(shares) {
        assert!((*count as f32 / 4000.0 - share).abs() < 0.03, "{all:?}");
    }
    let top_k = Some(2);
    let two = draws(&SamplingConfig { top_k, ..config() }, &logits, 3000);
    assert!((two[0] as f32 / 3000.0 - 2.0 / 3.0).abs() < 0.04, "{two:?}");
    assert_eq!(two[2..], [0, 0]);
    let top_p = Some(0.7);
    let nucleus = draws(&SamplingConfig { top_p, ..config() }, &logits, 3000);
    assert_eq!(nucleus[2..], [0, 0]);
    // Of the two that are left, 0.6 is the first one's alone.
    let top_p = Some(0.6);
    let one = draws(
        &SamplingConfig {
            top_p,
            top_k,
            ..config()
        },
        &logits,
        100,
    );
    assert_eq!(one, [100, 0, 0, 0]);
    let temperature = 0.0;
    let greedy = draws(
        &SamplingConfig {
            temperature,
            ..config()
        },
        &logits,
        10,
    );
    assert_eq!(greedy, [10, 0, 0, 0]);
}

#[test]
fn a_draw_among_all_has_the_chances_of_each_token() {
    // More than a group, likely tokens in two of them, and a temperature.
    let mut shares = vec![1e-6f32; 700];
    shares[3] = 0.4;
    shares[600] = 0.3;
    shares[601] = 0.2;
    shares[699] = 0.1;
    let logits: Vec<f32> = shares.iter().map(|s| s.ln() * 0.5 + 9.0).collect();
    let c = SamplingConfig {
        temperature: 0.5,
        ..config()
    };
    let counts = draws(&c, &logits, 4000);
    for (token, share) in [(3, 0.4), (600, 0.3), (601, 0.2), (699, 0.1)] {
        let got = counts[token] as f32 / 4000.0;
        assert!((got - share).abs() < 0.03, "{token}: {got}");
    }
    let mut broken = logits;
    broken[650] = f32::NAN;
    assert!(Sampler::new(&c).sample(&mut broken, &[], 0, &[]).is_err());
}

#[test]
fn a_token_is_penalized_once_however_often_it_came() {
    let mut logits = [2.0, -2.0, 3.0];
    penalize(&mut logits, 2.0, &[0, 0, 1, 0, 9]);
    assert_eq!(logits, [1.0, -4.0, 3.0]);
}

#[test]
fn presence_counts_once_and_frequency_each_time() {
    let mut logits = [5.0, 5.0, 5.0];
    subtract(&mut logits, 1.0, 0.5, &[0, 1, 0, 9]);
    assert_eq!(logits, [3.0, 3.5, 5.0]);
}

#[test]
fn chances_are_those_before_penalties_and_add_up() {
    let shares = [0.5f32, 0.25, 0.125, 0.125];
    let mut logits = shares.map(|s| s.ln() + 3.0);
    let c = SamplingConfig {
        temperature: 0.0,
        frequency_penalty: 2.0,
        logprobs: Some(2),
        ..config()
    };
    let (token, logprobs) = Sampler::new(&c)
        .sample(&mut logits, &[0, 0], 0, &[])
        .unwrap();
    let logprobs = logprobs.unwrap();
    // The likeliest was penalized away; what is told is the model's own.
    assert_eq!(token, 1);
    assert!((logprobs.logprob.exp() - 0.25).abs() < 1e-4, "{logprobs:?}");
    let top: Vec<u32> = logprobs.top.iter().map(|t| t.0).collect();
    assert_eq!(top, [0, 1]);
    assert!((logprobs.top[0].1.exp() - 0.5).abs() < 1e-4, "{logprobs:?}");
}

#[test]
fn a_logit_that_is_no_number_is_an_error_and_not_a_token() {
    let mut one = vec![0.0; 100];
    one[70] = f32::NAN;
    let all = vec![f32::NAN; 100];
    let ways: [fn(&mut SamplingConfig); 6] = [
        |c| c.top_k = Some(5),
        |c| c.top_p = Some(0.5),
        |c| c.min_p = Some(0.1),
        |c| c.typical_p = Some(0.5),
        |c| c.temperature = 0.0,
        |c| c.logprobs = Some(3),
    ];
    for change in ways {
        let mut c = config();
        change(&mut c);
        for logits in [&one, &all] {
            let mut sampler = Sampler::new(&c);
            assert!(sampler.sample(&mut logits.clone(), &[], 0, &[]).is_err());
        }
    }
}

#[test]
fn a_bias_min_p_and_too_few_tokens_exclude_what_they_must() {
    let logits = [3.0, 2.0, 1.0, 0.0, -1.0];
    let drawn = |c: &SamplingConfig, ends: &[u32]| -> std::collections::BTreeSet<u32> {
        let mut sampler = Sampler::new(c);
        let one = |_| {
            sampler
                .sample(&mut logits.to_vec(), &[7], 0, ends)
                .unwrap()
                .0
        };
        (0..400).map(one).collect()
    };
    let plain = SamplingConfig {
        temperature: 1.0,
        top_p: None,
        top_k: None,
        repeat_penalty: 1.0,
        ..SamplingConfig::default()
    };
    assert_eq!(drawn(&plain, &[]).len(), 5);
    // e^-1 is 0.37 of the likeliest, e^-2 is 0.14.
    let min_p = SamplingConfig {
        min_p: Some(0.3),
        ..plain.clone()
    };
    assert_eq!(drawn(&min_p, &[]), [0, 1].into());
    let both = SamplingConfig {
        top_k: Some(1),
        ..min_p.clone()
    };
    assert_eq!(drawn(&both, &[]), [0].into());
    let typical = SamplingConfig {
        typical_p: Some(0.1),
        ..plain.clone()
    };
    assert_eq!(drawn(&typical, &[]).len(), 1);
    let bias = SamplingConfig {
        logit_bias: vec![(0, -100.0), (1, f32::NEG_INFINITY), (4, 90.0), (99, 1.0)],
        ..plain.clone()
    };
    assert_eq!(drawn(&bias, &[]), [4].into());
    // One token is there, of two: the ends are not drawn yet.
    let short = SamplingConfig {
        min_tokens: 2,
        stop_tokens: vec![1],
        ..plain.clone()
    };
    assert_eq!(drawn(&short, &[0]), [2, 3, 4].into());
    let long = SamplingConfig {
        min_tokens: 1,
        ..short
    };
    assert_eq!(drawn(&long, &[0]).len(), 5);
}
