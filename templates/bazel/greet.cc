#include <iostream>

int main() { std::cout << "built on the farm\n"; }
