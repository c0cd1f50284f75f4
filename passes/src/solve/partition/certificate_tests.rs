//! Certificates are accepted as they are made, and refused when anything in them is changed.

use super::certificate::{Certificate, CertificateError, Potential};
use super::hosts_tests::{blocks, chain_of_blocks};
use super::tests::problem;
use super::*;
use proptest::prelude::*;

fn certified(p: &Problem) -> Option<(Solution, Certificate)> {
    let solution = solve(p, &Limits::default()).ok()?;
    let certificate = Certificate::new(p, &solution, &Limits::default()).unwrap();
    Some((solution, certificate))
}

fn accepts(p: &Problem, certificate: &Certificate) -> bool {
    certificate.check(p, &Limits::default()).is_ok()
}

/// Everything that the bound of a tampered certificate can claim and still be true.
fn is_true(p: &Problem, certificate: &Certificate) -> bool {
    let solution = solve(p, &Limits::default()).unwrap();
    let loads = evaluate(p, &certificate.device_of).loads;
    certificate.lower_bound <= solution.objective
        && loads.iter().max() == Some(&certificate.objective)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn certificates_are_accepted(p in prop_oneof![problem(), chain_of_blocks()]) {
        if let Some((solution, certificate)) = certified(&p) {
            prop_assert_eq!(certificate.check(&p, &Limits::default()), Ok(()));
            prop_assert_eq!(certificate.lower_bound, solution.objective);
        }
    }

    #[test]
    fn a_bound_is_none_of_branches(p in problem()) {
        if let Some((solution, _)) = certified(&p) {
            let values = p.values.into_iter().map(|value| Value { relayed: false, ..value });
            let branched = Problem { branches: Some(3), values: values.collect(), ..p };
            if let Ok(certificate) = Certificate::new(&branched, &solution, &Limits::default()) {
                prop_assert!(!accepts(&branched, &certificate));
            }
        }
    }

    #[test]
    fn no_certificate_shows_too_much(p in prop_oneof![problem(), chain_of_blocks()], more in 1u64..20) {
        if let Some((mut solution, mut certificate)) = certified(&p) {
            certificate.lower_bound += more;
            prop_assert!(!accepts(&p, &certificate));
            // Neither with a placement that is worse, whose objective would allow it.
            solution.lower_bound += more;
            let made = Certificate::new(&p, &solution, &Limits::default());
            if let Ok(certificate) = made {
                prop_assert!(!accepts(&p, &certificate));
            } else {
                prop_assert_eq!(made, Err(CertificateError::NotProven));
            }
        }
    }

    #[test]
    fn what_is_accepted_after_tampering_is_true(
        p in prop_oneof![problem(), chain_of_blocks()],
        places in prop::collection::vec((0usize..6, any::<prop::sample::Index>(), 0u64..9), 1..4),
    ) {
        if let Some((_, mut certificate)) = certified(&p) {
            for (what, place, number) in places {
                let devices = p.devices + p.hosts;
                let c = &mut certificate;
                match what {
                    0 if !c.ideals.is_empty() => {
                        let at = place.index(c.ideals.len());
                        let digits: String = c.ideals[at].0.chars().rev().collect();
                        c.ideals[at].0 = digits;
                    }
                    1 => c.objective = number,
                    2 => c.lower_bound = number,
                    3 if !c.ideals.is_empty() => {
                        c.ideals.remove(place.index(c.ideals.len()));
                    }
                    4 if !c.ideals.is_empty() => {
                        let at = place.index(c.ideals.len());
                        let counts = &mut c.ideals[at].1;
                        let at = place.index(counts.len());
                        counts[at] = (number < 8).then_some(number as u32);
                    }
                    5 if !c.device_of.is_empty() => {
                        let at = place.index(c.device_of.len());
                        c.device_of[at] = number as usize % devices;
                    }
                    _ => {}
                }
            }
            if accepts(&p, &certificate) {
                prop_assert!(is_true(&p, &certificate));
            }
        }
    }
}

/// A certificate with ideals of which each is needed.
fn example() -> (Problem, Certificate) {
    let draws = [
        (9, 1, 90, false),
        (4, 1, 50, false),
        (5, 1, 40, false),
        (8, 1, 99, false),
    ];
    let draws = [draws, draws].concat();
    let ends = [
        (0, 1, 14, false),
        (0, 2, 14, false),
        (3, 4, 15, false),
        (4, 3, 16, true),
    ];
    let p = Problem {
        devices: 3,
        hosts: 1,
        ..blocks(&[1, 2, 1, 2, 1], &draws, &ends)
    };
    let (_, certificate) = certified(&p).unwrap();
    assert!(certificate.ideals.len() > 2, "{certificate:?}");
    (p, certificate)
}

#[test]
fn every_listed_number_matters() {
    let (p, certificate) = example();
    assert!(accepts(&p, &certificate));
    for at in 0..certificate.ideals.len() {
        let mut dropped = certificate.clone();
        dropped.ideals.remove(at);
        assert!(!accepts(&p, &dropped), "without ideal {at}");
        for hosts in 0..=p.hosts {
            let mut raised = certificate.clone();
            let counts = &mut raised.ideals[at].1;
            // With one more host the same number of devices may be needless to say.
            if let Some(count) = counts[hosts]
                && (hosts == 0 || counts[hosts - 1] != Some(count))
            {
                counts[hosts] = Some(count + 1);
                assert!(
                    !accepts(&p, &raised),
                    "ideal {at} with {hosts} hosts raised"
                );
            }
        }
    }
}

#[test]
fn foreign_and_hostile_certificates_are_refused() {
    let (p, certificate) = example();
    let other = Problem {
        devices: 4,
        ..p.clone()
    };
    assert_eq!(
        certificate.check(&other, &Limits::default()),
        Err(Refusal::Problem)
    );
    let change = |f: &dyn Fn(&mut Certificate)| {
        let mut changed = certificate.clone();
        f(&mut changed);
        let refusal = changed.check(&p, &Limits::default()).unwrap_err();
        refusal.to_string()
    };
    let first = certificate.ideals[0].clone();
    type Change<'a> = &'a dyn Fn(&mut Certificate);
    let cases: [(&str, Change<'_>); 14] = [
        ("format", &|c| c.format.push('2')),
        ("another problem", &|c| c.problem.clear()),
        ("device_of", &|c| c.device_of.truncate(3)),
        ("device_of", &|c| c.device_of[0] = usize::MAX),
        ("objective", &|c| c.objective += 1),
        ("objective", &|c| c.objective = u64::MAX),
        ("lower_bound", &|c| c.lower_bound = u64::MAX),
        ("rates", &|c| c.rates.clear()),
        ("rates", &|c| c.rates[0].1 = 0),
        ("ideals lack", &|c| c.ideals.clear()),
        ("listed twice", &|c| c.ideals.push(first.clone())),
        ("hexadecimal", &|c| c.ideals[0].0.push_str("00000000000000")),
        ("hexadecimal", &|c| c.ideals[0].0 = "ä".to_owned()),
        ("each number of hosts", &|c| {
            c.ideals[0].1 = vec![Some(u32::MAX); 99]
        }),
    ];
    for (word, f) in cases {
        let message = change(f);
        let plain = message.replace("ideals: lack", "ideals lack");
        assert!(plain.contains(word), "{word}: {message}");
    }
    // A bound may be understated, which is true, but not shown with rates that take too much for a host.
    let short = change(&|c| c.ideals.retain(|Potential(_, counts)| counts[0] == Some(0)));
    assert!(short.contains("whose potential is larger"), "{short}");
    let spent = Limits {
        steps: 3,
        ..Limits::default()
    };
    assert_eq!(certificate.check(&p, &spent), Err(Refusal::Unfinished));
}
