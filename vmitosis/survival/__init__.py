"""What a guest with replicated second-level tables has to survive, its memory compared: `python -m vmitosis.survival`.

In the guest a program (keeper.c) checks and changes memory all the time; in the machine vCPU threads are moved between
its nodes meanwhile, so that roots are switched while something happens to the guest. What is compared is said by each
scenario (`vmitosis.survival.scenarios`).
"""
