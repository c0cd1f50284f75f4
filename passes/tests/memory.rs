//! How tightly the tiles of the base model's training plans are laid out.

use lxpod_ir::Target;
use lxpod_ir::front::{AnswerLoss, Losses, LxmertConfig, ModelOptions};
use lxpod_passes::schedule::Rule;
use lxpod_passes::{CompileOptions, Recompute, TrainingOptions, compile};

/// Training on tiles with room for anything, so that the stages are those of the fastest split.
fn options(seq_len: usize, stages: usize, recompute: Recompute) -> CompileOptions {
    let model = ModelOptions {
        seq_len,
        losses: Losses::Answer {
            loss: Some(AnswerLoss::CrossEntropy),
            bce: true,
        },
        ..ModelOptions::default()
    };
    let mut target = Target::named("pod16").unwrap();
    target.tile.core_memory *= 100;
    let mut options = CompileOptions::new(model, target);
    options.stages = Some(stages);
    options.training = Some(TrainingOptions {
        rule: Rule::OneFOneB,
        accumulation: 2 * stages,
        recompute,
        ..TrainingOptions::default()
    });
    options
}

#[test]
fn activations_take_no_more_than_what_is_alive_at_once() {
    for (seq_len, stages, recompute) in [
        (20, 1, Recompute::None),
        (20, 8, Recompute::Layer),
        (20, 16, Recompute::Layer),
        (128, 4, Recompute::None),
        (128, 8, Recompute::None),
        (512, 16, Recompute::Layer),
    ] {
        let options = options(seq_len, stages, recompute);
        let (plan, _) = compile(&LxmertConfig::base(), "", &options, &mut |_, _| {}).unwrap();
        for tile in &plan.tiles {
            let (extent, live) = (tile.memory.activations, tile.memory.max_live);
            let what = format!("T={seq_len}, {stages} stages, {recompute:?}");
            assert!(
                extent >= live && extent * 100 <= live * 101,
                "{what}: {extent} {live}"
            );
        }
    }
}
