use lxpod_ir::{front::*, Target};
use lxpod_passes::*;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let mut o = CompileOptions::new(ModelOptions::default(), Target::named("pod16").unwrap());
    if let Some(t) = a.get(1) { o.model.seq_len = t.parse().unwrap(); }
    if let Some(t) = a.get(2) { o.stages = Some(t.parse().unwrap()); }
    let (plan, r) = compile(&LxmertConfig::base(), "lxmert-base", &o, &mut |_, _| {}).unwrap();
    for p in &r.passes { println!("{:16} {:5} {:5}->{:5} {:?}", p.name, p.patches, p.nodes_before, p.nodes_after, p.duration); }
    println!("{:?} {:?}", r.duration, plan.partition);
    for (s, p) in plan.programs.iter().enumerate() { println!("{s} steps {} cycles {:?} total {} mem {:?}", p.steps.len(), plan.stage_cycles(s), plan.stage_cycles(s).total(), p.memory); }
    let t = std::time::Instant::now();
    let b = plan.to_bytes().unwrap(); println!("bytes {} {:?}", b.len(), t.elapsed());
    let t = std::time::Instant::now();
    let p2 = lxpod_passes::plan::Plan::from_bytes(&b).unwrap(); println!("read {:?} {}", t.elapsed(), p2.to_bytes().unwrap() == b);
}
