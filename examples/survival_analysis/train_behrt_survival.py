"""Pretrain on simulated records, adapt to one outcome by a strategy, score on held-out patients.

python examples/survival_analysis/train_behrt_survival.py --strategy lora
"""

import argparse
import tempfile
from pathlib import Path

import ehrsequencing as ehr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--strategy", choices=["frozen", "lora", "full"], default="lora")
    parser.add_argument("--patients", type=int, default=3_000)
    parser.add_argument("--epochs", type=int, default=5)
    options = parser.parse_args()

    with tempfile.TemporaryDirectory() as folder, ehr.ProgressDisplay() as progress:
        dataset = ehr.simulate(Path(folder) / "meds", ehr.SimulateConfig(patients=options.patients))
        task = ehr.load_task(dataset.root / "task.yaml")
        cohort = ehr.build_cohort(dataset, task)
        print(cohort.describe())

        encoder = ehr.pretrain(dataset, ehr.PretrainConfig(epochs=2), progress=progress)
        prepared = ehr.prepare(dataset, cohort, encoder)
        choice = ehr.choose_recipe(prepared.n_labelled, prepared.n_labelled_events)
        recipe, departures = choice.recipe.within(ehr.BudgetConfig(max_epochs=options.epochs))
        print(choice.text(), *departures, sep="\n")

        model = ehr.BEHRTForSurvival.from_encoder(encoder.model, strategy=options.strategy)
        params = model.get_trainable_parameters()
        print(f"Trainable: {params['trainable']:,} / {params['total']:,}")

        fitted = ehr.finetune(prepared.data, options.strategy, recipe, encoder.model, progress=progress)
        for name, figure in ehr.evaluate_held_out(prepared.data, fitted).items():
            print(f"{name:<12} {figure.value:.3f} (95% {figure.low:.3f} to {figure.high:.3f})")


if __name__ == "__main__":
    main()
