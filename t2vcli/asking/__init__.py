"""From what a person wrote (a Job) to what will be made, exactly (a Work). No torch, no typer."""
